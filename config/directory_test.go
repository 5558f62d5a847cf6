package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

func TestDirectoryURI(t *testing.T) {
	parse := func(rd string) (config.Directory, error) {
		c, err := config.Parse("c.yaml", []byte("names: {rd.example: [192.0.2.5]}\ngroups:\n- name: g\n  uri: coap://224.0.1.187\n  interfaces: [lo]\n  rd: "+rd+"\n"))
		if err != nil {
			return config.Directory{}, err
		}
		return c.Groups[0].RD, nil
	}
	for in, want := range map[string]string{
		`{uri: "coap://192.0.2.5"}`:                          "coap://192.0.2.5:5683",
		`{uri: "coaps+tcp://192.0.2.5/rd"}`:                  "coaps+tcp://192.0.2.5:5684/rd",
		`{uri: "coap://[2001:db8::5]:61616/rd-lookup/ep"}`:   "coap://[2001:db8::5]:61616/rd-lookup/ep",
		`{uri: "coap://RD.example/a%20b?et=x&d=y%26z"}`:      "coap://rd.example:5683/a%20b?et=x&d=y%26z",
		`{uri: "coap://[fe80::5%lo]/rd", filter: [et=lamp]}`: "coap://fe80::5%lo:5683/rd",
		`{}`: "",
	} {
		d, err := parse(in)
		require.NoError(t, err, in)
		if in == `{uri: "coap://[fe80::5%lo]/rd", filter: [et=lamp]}` {
			require.Equal(t, "lo", d.URI.Addr.Zone())
			require.Equal(t, []string{"et=lamp"}, d.Filter)
			continue
		}
		require.Equal(t, want, d.URI.String(), in)
	}
	for in, want := range map[string]string{
		`{filter: [et=lamp]}`:                                      "groups[0].rd.filter: a filter without a directory; write uri, too",
		`{uri: "192.0.2.5"}`:                                       "groups[0].rd.uri: 192.0.2.5 has no scheme",
		`{uri: "coap://elsewhere.example/rd"}`:                     "groups[0].rd.uri: elsewhere.example is not in names",
		`{uri: "coap://224.0.1.187/rd"}`:                           "groups[0].rd.uri: a resource directory has a unicast address",
		`{uri: "coap://[fe80::5]/rd"}`:                             "groups[0].rd.uri: a link-local address needs its interface",
		`{uri: "http://192.0.2.5/rd"}`:                             "groups[0].rd.uri: resource directories are not reached by http",
		`{uri: "coap://192.0.2.5:0/rd"}`:                           "groups[0].rd.uri: 0 is not the port of a server",
		`{uri: "coap://192.0.2.5/%zz"}`:                            "groups[0].rd.uri: %zz cannot stand in a coap URI",
		`{uri: "coap://192.0.2.5", filter: [""]}`:                  "groups[0].rd.filter[0]:",
		"{uri: \"coap://192.0.2.5\"}\n  members: [192.0.2.7:5683]": "groups[0].rd: given together with members",
		"{uri: \"coap://192.0.2.5\"}\n  learned: {within: 2}":      "groups[0].rd: given together with learned",
	} {
		_, err := parse(in)
		require.ErrorContains(t, err, want, in)
	}
}

func TestControl(t *testing.T) {
	for in, want := range map[string]string{
		`{socket: ""}`: "control.socket: empty", `{group: "a b"}`: "control.group: ",
		`{socket: /` + longPath + `}`: "control.socket: the path of a socket has at most 107 bytes",
	} {
		_, err := config.Parse("c.yaml", []byte("control: "+in+"\n"))
		require.ErrorContains(t, err, want, in)
	}
	path, required := config.Default().Control.Path()
	require.Equal(t, config.DefaultControlSocket, path)
	require.False(t, required)
	path, _ = config.Control{Socket: config.ControlOff}.Path()
	require.Empty(t, path)
	path, required = config.Control{Socket: "/x"}.Path()
	require.Equal(t, "/x", path)
	require.True(t, required)
}

const longPath = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// Paths are relative to the folder of the file.
func TestRelativePaths(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.yaml")
	require.NoError(t, os.WriteFile(file, []byte("cache: {persist: stored}\ncontrol: {socket: run/s}\n"), 0o600))
	c, err := config.Load(file)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "stored"), c.Cache.Persist)
	require.Equal(t, filepath.Join(dir, "run", "s"), c.Control.Socket)
}
