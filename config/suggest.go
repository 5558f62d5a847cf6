package config

import "strings"

// maxSuggestions bounds how many names nearest looks through, so that a hostile
// file of many wrong names is refused as fast as any other.
const maxSuggestions = 200

// nearest returns the name that s was probably meant to be, or "".
func nearest(s string, names []string) string {
	if len(s) > 64 {
		return ""
	}
	folded := fold(s)
	best, bestDistance := "", 1+min(2, len(folded)/2)
	for _, name := range names[:min(len(names), maxSuggestions)] {
		if d := distance(folded, fold(name), bestDistance); d < bestDistance {
			best, bestDistance = name, d
		}
	}
	return best
}

// fold removes the differences between spelling habits, such as maxTimeout,
// max-timeout and max_timeout.
func fold(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(strings.ToLower(s), "_", ""), "-", "")
}

// distance returns how many bytes must be inserted, removed, changed or swapped
// with their neighbour to make b from a; limit when it is limit or more.
func distance(a, b string, limit int) int {
	if max(len(a)-len(b), len(b)-len(a)) >= limit {
		return limit
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return min(last[len(b)], limit)
}
