package cronmutex

// What the tests reach.
var (
	OncePerTickAt = oncePerTick
	Nearest       = nearest
)
