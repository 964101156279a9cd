package locktable

import (
	"slices"
	"sync"
)

// freedNumbers are those of what this process has freed, by ids: slots by their semaphores', rows by their mutexes'.
// Somebody else may have taken them since.
type freedNumbers struct {
	mu      sync.Mutex
	numbers map[string][]int64
}

// freedLimit is how many ids to remember.
const freedLimit = 1000

func (f *freedNumbers) put(id string, number int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.numbers == nil {
		f.numbers = map[string][]int64{}
	}
	for other := range f.numbers {
		if len(f.numbers) < freedLimit {
			break
		}
		delete(f.numbers, other)
	}
	if !slices.Contains(f.numbers[id], number) {
		f.numbers[id] = append(f.numbers[id], number)
	}
}

// take forgets the number that was put last of those up to most, and returns it, or 0.
func (f *freedNumbers) take(id string, most int64) (number int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	numbers := f.numbers[id]
	for i, number := range slices.Backward(numbers) {
		if number > most {
			continue
		}
		if len(numbers) == 1 {
			delete(f.numbers, id)
		} else {
			f.numbers[id] = slices.Delete(numbers, i, i+1)
		}
		return number
	}
	return 0
}
