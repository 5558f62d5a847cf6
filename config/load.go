package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxSize bounds the size of a configuration, in bytes.
const maxSize = 1 << 20

// InterfaceLookup finds a network interface by name; net.InterfaceByName is one.
type InterfaceLookup func(name string) (*net.Interface, error)

// Option changes how a configuration is checked.
type Option func(*settings)

type settings struct{ lookup InterfaceLookup }

// WithInterfaces replaces net.InterfaceByName for finding out whether the
// interfaces named in the configuration exist. With nil they are not looked up,
// for checking a file that belongs to another host.
func WithInterfaces(lookup InterfaceLookup) Option {
	return func(s *settings) { s.lookup = lookup }
}

func newSettings(opts []Option) settings {
	s := settings{lookup: net.InterfaceByName}
	for _, opt := range opts {
		opt(&s)
	}
	return s
}

// Load reads and checks the configuration in the file at path, which is not empty. Mistakes in it
// are returned as [Problems]; any other error means that the file could not be
// read.
func Load(path string, opts ...Option) (*Config, error) {
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		// It would be valid, and take everything away from everybody. Whoever wants
		// that can write a comment.
		return nil, Problems{{File: path, Message: "the file is empty, as while it is being written", Hint: "write a configuration, or a comment for nothing but defaults"}}
	}
	c, err := Parse(path, data, opts...)
	if err != nil {
		return c, err
	}
	c.Control.locate(filepath.Dir(path))
	c.Credentials.resolve(filepath.Dir(path))
	c.OSCORE.locate(filepath.Dir(path))
	place := statePlace{system: systemFolder, state: stateFolder}
	for _, name := range [...]*string{&c.Cache.Persist, &c.OSCORE.Store, &c.Proxy.ServerTargets} {
		*name = place.path(filepath.Dir(path), *name)
	}
	return c, nil
}

// read reads the file at path, as far as a configuration may be long and a byte more.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return data, nil
}

// Parse checks the configuration in data; name stands for the file in problems.
// An empty document gives [Default]. Every error is of type [Problems].
func Parse(name string, data []byte, opts ...Option) (*Config, error) {
	root, problem := document(data)
	if problem != nil {
		problem.File = name
		return nil, Problems{*problem}
	}
	c := Default()
	c.source = source{file: name, lines: map[string]int{}}
	d := decoder{source: c.source}
	if root != nil {
		c.source.lines[""] = root.Line
		d.value(root, "", reflect.ValueOf(c).Elem())
	}
	problems := d.problems
	if !d.exhausted {
		problems = append(problems, c.validate(newSettings(opts), d.problems)...)
	}
	if err := problems.err(); err != nil {
		return nil, err
	}
	c.inherit()
	return c, nil
}

// source remembers where the values of a Config were written.
type source struct {
	file  string
	lines map[string]int // by dotted key
}

// line returns the line of key or, when it was not written, of the closest
// value around it; 0 when there is none.
func (s source) line(key string) int {
	for {
		if line, ok := s.lines[key]; ok || key == "" {
			return line
		}
		key = parent(key)
	}
}

// parent returns the key of the value around the one named key: groups[0] for
// groups[0].uri, and groups for that.
func parent(key string) string { return key[:max(0, strings.LastIndexAny(key, ".["))] }

// document parses data as one YAML document and returns its top node, nil when
// it is empty.
func document(data []byte) (*yaml.Node, *Problem) {
	if len(data) > maxSize {
		return nil, &Problem{
			Message: fmt.Sprintf("the file is larger than %s", Bytes(maxSize)),
			Hint:    "write a shorter configuration",
		}
	}
	if problem := checkText(data); problem != nil {
		return nil, problem
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	if err := dec.Decode(&first); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, syntaxProblem(data, err)
	}
	switch err := dec.Decode(&second); {
	case err == nil:
		return nil, &Problem{Line: second.Line, Message: "a second YAML document begins here", Hint: "keep everything in one, without --- between"}
	case !errors.Is(err, io.EOF):
		return nil, syntaxProblem(data, err)
	}
	return first.Content[0], nil
}
