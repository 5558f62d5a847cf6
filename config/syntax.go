package config

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// checkText reports the first line of data that is not UTF-8.
func checkText(data []byte) *Problem {
	if utf8.Valid(data) {
		return nil
	}
	line := 1
	for text := range bytes.Lines(data) {
		if !utf8.Valid(text) {
			break
		}
		line++
	}
	return &Problem{Line: line, Message: "not UTF-8 text", Hint: "save the file as UTF-8"}
}

// syntaxProblem describes err, which the YAML parser returned for data.
func syntaxProblem(data []byte, err error) *Problem {
	line := syntaxLine(data)
	p := &Problem{
		Line:    line,
		Message: "YAML: " + regexp.MustCompile(`^yaml: (line \d+: )?`).ReplaceAllString(err.Error(), ""),
		Hint:    "check the indentation, and put quotes round text with special characters",
	}
	switch text := lineText(data, line); {
	case strings.HasPrefix(strings.TrimLeft(text, " "), "\t"):
		p.Hint = "indent with spaces, not with tabs"
	case strings.Contains(text, ": *"), strings.Contains(text, "- *"), strings.Contains(text, "[*"):
		p.Hint = `put quotes round the star: "*"`
	case strings.Contains(text, "[:"), strings.Contains(text, ", :"):
		p.Hint = `put quotes round an IPv6 address in a list: "::1"`
	case strings.Count(text, `"`)%2 == 1:
		p.Hint = `close the quotes`
	case strings.Count(text, "[") > strings.Count(text, "]"):
		p.Hint = "close the list with ]"
	}
	return p
}

// syntaxLine returns the line, from 1, at which data stops being YAML. The
// parser's own numbers are no help: they are missing for the first line, and for
// many mistakes name the beginning of the list or mapping around them.
//
// The parser is fed line by line to see how far it gets, which can be a little
// too far, or to the very end when a quote or bracket is never closed. From
// there it goes back while the lines before are no complete document either.
func syntaxLine(data []byte) int {
	ends := []int{0} // ends[n] is where line n ends
	for text := range bytes.Lines(data) {
		ends = append(ends, ends[len(ends)-1]+len(text))
	}
	complete := func(lines int) bool { return parseAll(bytes.NewReader(data[:ends[lines]])) == nil }

	feed := &lineReader{data: data, ends: ends[1:]}
	_ = parseAll(feed)
	bad := feed.lines
	const steps = 50
	for range steps {
		if bad <= 1 || complete(bad-1) {
			return bad
		}
		bad--
	}
	// Far back, so something was left open. Look for its line by halving; what
	// is above it rarely ends in the middle of a list.
	good := 0
	for bad-good > 1 {
		if middle := (good + bad) / 2; complete(middle) {
			good = middle
		} else {
			bad = middle
		}
	}
	return bad
}

// parseAll reads every document of r and returns the first error.
func parseAll(r io.Reader) error {
	dec := yaml.NewDecoder(r)
	for {
		var n yaml.Node
		if err := dec.Decode(&n); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// lineReader returns at most one line a read.
type lineReader struct {
	data  []byte
	ends  []int
	off   int
	lines int // how many lines have been begun
}

func (r *lineReader) Read(p []byte) (int, error) {
	if r.off == len(r.data) {
		return 0, io.EOF
	}
	if r.lines == 0 || r.off == r.ends[r.lines-1] {
		r.lines++
	}
	n := copy(p, r.data[r.off:r.ends[r.lines-1]])
	r.off += n
	return n, nil
}

// lineText returns the text of a line that counts from 1.
func lineText(data []byte, line int) string {
	n := 1
	for text := range bytes.Lines(data) {
		if n == line {
			return string(text)
		}
		n++
	}
	return ""
}
