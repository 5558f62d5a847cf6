package config_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

// FuzzParse: whatever the bytes, either a configuration that is valid or
// problems that each are one line, with a place inside the file.
func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(config.Example())
	f.Add(config.Initial(config.Secrets{}))
	f.Add([]byte(group + client))
	f.Add([]byte("listen: [coap://[fe80::1%eth0], coaps://x]\nlog:\n\tlevel: *\n"))
	f.Add([]byte("a: &a [*a, *a]\nclients: *a\n"))
	f.Add([]byte("clients: [{forward: [\"coap://[::]/0:*\", \"coap://*:*\", \"coap://[\"]}]\n"))
	f.Add([]byte("%YAML 1.1\n---\n? {a: b}\n: !!binary x\n...\n---\n"))
	f.Add([]byte("names: {A: [::], a: []}\nproxy: {option_numbers: {reply_from: 65535}}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		lookup := hostWith("lo", "eth0")
		c, err := config.Parse("c.yaml", data, config.WithInterfaces(lookup))
		if err == nil {
			require.NoError(t, c.Validate(config.WithInterfaces(lookup)))
			return
		}
		require.Nil(t, c)
		var problems config.Problems
		require.ErrorAs(t, err, &problems)
		require.NotEmpty(t, problems)
		lines, last := 1, 0
		for _, r := range string(data) {
			if strings.ContainsRune("\r\n\u0085\u2028\u2029", r) { // YAML's line breaks
				lines++
			}
		}
		for _, p := range problems {
			require.LessOrEqual(t, last, p.Line, "in line order")
			require.LessOrEqual(t, p.Line, lines)
			require.NotEmpty(t, p.Message)
			require.NotContains(t, p.String(), "\n")
			last = p.Line
		}
	})
}
