//go:build race

package test

// raceDetector: these tests look for data races, and so does the program they test,
// which then ends with another exit code than 0.
const raceDetector = true
