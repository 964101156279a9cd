// Keeps the pages fresh. Without this script all else works, by links and forms.
(() => {
  "use strict";
  const every = Number(document.body.dataset.refresh);
  const live = document.querySelector("[data-live]");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const words = s => {
    const i = units.findIndex(([n]) => s >= n);
    if (i < 0) return "0 s";
    const [size, name] = units[i], next = units[i + 1], rest = next ? Math.floor(s % size / next[0]) : 0;
    return Math.floor(s / size) + " " + name + (rest && (next[0] > 1 || s < 600) ? " " + rest + " " + next[1] : "");
  };

  // The clock that counts is the database's: the page says how far it was, and this machine only counts on.
  const seen = new WeakMap();
  const passed = e => {
    if (!seen.has(e)) seen.set(e, performance.now());
    return (performance.now() - seen.get(e)) / 1000;
  };
  const tick = () => {
    for (const e of all("[data-left]")) {
      const left = e.dataset.left - passed(e);
      e.textContent = left > 0 ? words(left) : "running out";
    }
    for (const e of all("[data-since]")) e.textContent = words(Number(e.dataset.since) + passed(e));
  };

  const say = (text, kind) => {
    if (!live || live.textContent === text) return; // a screen reader would say it again
    live.textContent = text;
    live.className = "live " + kind;
  };
  const wait = "Live, every " + every + " s";
  const replace = (part, next) => {
    const chosen = getSelection();
    if (part.contains(document.activeElement) || !chosen.isCollapsed && part.contains(chosen.anchorNode)) return;
    if (part.querySelector(".note.ok") && !next.firstElementChild) return; // it tells of one moment, and stays
    const known = new Set(all("[data-key]", part).map(e => e.dataset.key));
    part.replaceChildren(...next.childNodes);
    for (const e of all("[data-key]", part)) e.classList.toggle("new", !known.has(e.dataset.key));
  };
  let good = performance.now(), failures = 0, timer = 0, running = false;
  const refresh = async () => {
    if (running) return;
    running = true;
    try {
      const answer = await fetch(location.href, { signal: AbortSignal.timeout(15000) });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const parts = all("[data-part]").map(e => [e, page.querySelector(`[data-part="${e.dataset.part}"]`)]);
      if (parts.some(([, next]) => !next)) throw new Error("another page");
      for (const [part, next] of parts) replace(part, next);
      if (answer.status >= 500) throw new Error("no answer");
      good = performance.now();
      failures = 0;
      say(wait, "");
    } catch {
      failures++;
      say("No answer for " + words((performance.now() - good) / 1000) + ", trying again", "bad");
    }
    running = false;
    tick();
  };
  const loop = () => {
    clearTimeout(timer);
    if (every && !document.hidden) timer = setTimeout(() => refresh().then(loop), every * 1000 * Math.min(8, 1 + failures));
  };
  document.addEventListener("visibilitychange", () => { if (every && !document.hidden) refresh().then(loop); });

  document.addEventListener("keydown", e => {
    const search = document.querySelector("input[type=search]");
    if (e.key !== "/" || !search || e.ctrlKey || e.metaKey || e.altKey || document.activeElement === search) return;
    e.preventDefault();
    search.focus();
  });
  for (const e of all("[data-match]")) { // the button wakes when the id has been typed
    const wake = () => { e.form.querySelector("button").disabled = e.value !== e.dataset.match; };
    e.addEventListener("input", wake);
    wake();
  }
  for (const form of all("form[method=post]")) { // once: the second of two clicks would be told that nothing was released
    form.addEventListener("submit", e => {
      if (form.dataset.sent) e.preventDefault();
      form.dataset.sent = "yes";
    });
    addEventListener("pageshow", () => { delete form.dataset.sent; });
  }
  const url = new URL(location.href);
  if (url.searchParams.has("done")) {
    url.searchParams.delete("done");
    history.replaceState(null, "", url);
  }
  if (every) document.querySelector(".note.bad") ? say("No answer, trying again", "bad") : say(wait, "");
  tick();
  setInterval(tick, 1000);
  loop();
})();
