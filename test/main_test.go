// Package test holds the black-box tests: they start the real program with real
// configuration files and look at what goes over the wire. README.md says how
// they are made.
package test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// program is the program under test.
var program string

// programEnv names a program to test instead of building one.
const programEnv = "COAPPROXY_BIN"

// sideBySide is how many tests run at a time: they wait most of their time.
const sideBySide = "16"

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runTests(m))
}

// runTests builds the program and runs the tests.
func runTests(m *testing.M) int {
	parallel := false
	flag.Visit(func(f *flag.Flag) { parallel = parallel || f.Name == "test.parallel" })
	if !parallel {
		if err := flag.Set("test.parallel", sideBySide); err != nil {
			panic(err)
		}
	}
	if program = os.Getenv(programEnv); program != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "coapproxy-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "coapproxy")
	command := []string{"build", "-o", program}
	if raceDetector {
		command = append(command, "-race")
	}
	build := exec.Command("go", append(command, "coapproxy/cmd/coapproxy")...)
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		return 1
	}
	return m.Run()
}
