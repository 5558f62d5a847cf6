package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Problem is one mistake in a configuration.
type Problem struct {
	// File is the name of the configuration as its reader knows it; empty for a
	// Config made in code.
	File string
	// Line counts from 1; 0 when the mistake has no line.
	Line int
	// Key is the dotted path of the value, e.g. groups[0].uri; empty when the
	// whole file is meant.
	Key string
	// Message says what is wrong.
	Message string
	// Hint says what to write instead; may be empty.
	Hint string
}

// String returns the problem as one line:
//
//	config.yaml:12: groups[0].uri: 192.0.2.1 is not a multicast address; write e.g. coap://224.0.1.187
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File + ":")
	}
	if p.Line > 0 {
		b.WriteString(strconv.Itoa(p.Line) + ":")
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// Problems are all mistakes of one configuration, in the order of their lines.
// As an error it is never empty.
type Problems []Problem

// Error returns the problems, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// err returns ps sorted as an error, nil when it is empty.
func (ps Problems) err() error {
	if len(ps) == 0 {
		return nil
	}
	slices.SortStableFunc(ps, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	return ps
}
