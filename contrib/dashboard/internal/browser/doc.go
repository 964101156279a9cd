// Package browser tests the dashboard in a browser: Debian's chromium. It is a module of its own, so that the dashboard does
// not depend on what drives a browser.
package browser
