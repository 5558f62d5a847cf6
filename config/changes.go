package config

import (
	"fmt"
	"reflect"
)

// Change is one difference between two configurations.
type Change struct {
	// Key is the path of the value. Entries that have a name, and listeners, are
	// told by it, and as a whole: "clients.office", "listen coap://192.0.2.1:5683".
	Key string
	// What is "added", "removed" or "changed".
	What string
}

// String returns the change as a log shows it.
func (c Change) String() string { return c.Key + " " + c.What }

// Changes returns the differences between two valid configurations, in the order
// of the keys in [Config] and of the entries in after, those that are gone last.
func Changes(before, after *Config) []Change {
	return changes(nil, "", reflect.ValueOf(before).Elem(), reflect.ValueOf(after).Elem())
}

func changes(out []Change, key string, before, after reflect.Value) []Change {
	switch {
	case isSection(before.Type()):
		for i := range before.NumField() {
			if tag := before.Type().Field(i).Tag.Get("yaml"); tag != "" {
				inner := tag
				if key != "" {
					inner = key + "." + tag
				}
				out = changes(out, inner, before.Field(i), after.Field(i))
			}
		}
		return out
	case before.Kind() == reflect.Slice && entryName(reflect.New(before.Type().Elem()).Elem()) != nil:
		return entryChanges(out, key, before, after)
	case !reflect.DeepEqual(before.Interface(), after.Interface()):
		return append(out, Change{key, "changed"})
	}
	return out
}

// isSection reports whether t is a struct of keys, not a value written as text.
func isSection(t reflect.Type) bool {
	if t.Kind() != reflect.Struct {
		return false
	}
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("yaml") != "" {
			return true
		}
	}
	return false
}

// entryName returns what tells an entry of a list from the others; nil where
// entries have no name.
func entryName(entry reflect.Value) func(key string) string {
	if l, ok := entry.Interface().(Listener); ok {
		return func(key string) string { return key + " " + l.String() }
	}
	if entry.Kind() == reflect.Struct {
		if name := entry.FieldByName("Name"); name.IsValid() && name.Kind() == reflect.String {
			return func(key string) string { return key + "." + name.String() }
		}
	}
	return nil
}

func entryChanges(out []Change, key string, before, after reflect.Value) []Change {
	old := make(map[string]reflect.Value)
	number := func(names map[string]reflect.Value, e reflect.Value) string { // a listener with port 0 may be there twice
		name := entryName(e)(key)
		for i := 2; ; i++ {
			if _, taken := names[name]; !taken {
				return name
			}
			name = fmt.Sprintf("%s (%d)", entryName(e)(key), i)
		}
	}
	var order []string
	for i := range before.Len() {
		name := number(old, before.Index(i))
		old[name] = before.Index(i)
		order = append(order, name)
	}
	seen := make(map[string]reflect.Value)
	for i := range after.Len() {
		e := after.Index(i)
		name := number(seen, e)
		seen[name] = e
		switch was, ok := old[name]; {
		case !ok:
			out = append(out, Change{name, "added"})
		case !reflect.DeepEqual(was.Interface(), e.Interface()):
			out = append(out, Change{name, "changed"})
		}
	}
	for _, name := range order {
		if _, ok := seen[name]; !ok {
			out = append(out, Change{name, "removed"})
		}
	}
	return out
}
