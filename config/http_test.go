package config_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

func TestHTTPListeners(t *testing.T) {
	c, err := parse("listen: [\"http://127.0.0.1\", \"https://[::1]\", \"HTTP://127.0.0.1:8080\"]\ncredentials: {certificate: c.pem, key: k.pem}\n")
	require.NoError(t, err)
	require.Equal(t, "http://127.0.0.1:80", c.Listen[0].String())
	require.Equal(t, "https://[::1]:443", c.Listen[1].String())
	require.Equal(t, "http://127.0.0.1:8080", c.Listen[2].String())
	require.Equal(t, "/hc/", c.HTTP.Prefix)
	require.True(t, c.HTTP.HTTP3)
}

func TestHTTPProblems(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"no certificate": {"listen: [\"https://127.0.0.1\"]\n",
			"c.yaml:1: listen[0]: https needs a certificate; write credentials: {certificate: FILE, key: FILE}"},
		"same TCP port": {"listen:\n- http://127.0.0.1:5683\n- coap+tcp://127.0.0.1\n- coap://127.0.0.1\n",
			"c.yaml:3: listen[1]: coap+tcp://127.0.0.1:5683 is listen[0] in line 2 too; remove one of them"},
		"prefix": {"http: {prefix: hc}\n",
			"c.yaml:1: http.prefix: hc is not the path of a base; write a path that begins and ends with a slash, e.g. /hc/"},
		"template (HC-9)": {"http:\n  templates: [\"forward/{+tu}\", \"?s={s}\"]\n",
			`c.yaml:2: http.templates[1]: ?s={s} is not a template; write e.g. "?s={+s}&hp={+hp}&p={+p}&q={+q}", with the variables tu, or s, hp, p, q and qq`},
		"scheme": {"http: {default_scheme: ftp}\n",
			"c.yaml:1: http.default_scheme: ftp is not a known value; write one of coap, coaps, coap+tcp, coaps+tcp, coap+ws, coaps+ws"},
		"origins (HC-90)": {"http:\n  cors:\n    origins: [\"*\", dashboard.example, \"https://a.example/\"]\n    credentials: true\n    max_age: 25h\n",
			"c.yaml:3: http.cors.origins[0]: * together with credentials; name the origins\n" +
				"c.yaml:3: http.cors.origins[1]: dashboard.example is not an origin; write e.g. https://dashboard.example or http://localhost:3000\n" +
				"c.yaml:3: http.cors.origins[2]: https://a.example/ is not an origin; write e.g. https://dashboard.example or http://localhost:3000\n" +
				"c.yaml:5: http.cors.max_age: 25h is out of range; write a value from 0s to 24h"},
		"host names": {"http: {host_names: [\"a b\"]}\n",
			"c.yaml:1: http.host_names[0]: \"a b\" is not a host name; write e.g. gateway.example"},
		"limits (HC-97)": {"http:\n  limits: {header: 1, body: 0, exchanges: 0, idle_timeout: 0}\n",
			"c.yaml:2: http.limits.header: 1 is out of range; write a value from 1KiB to 1MiB\n" +
				"c.yaml:2: http.limits.body: 0 is out of range; write a value from 1 to 64MiB\n" +
				"c.yaml:2: http.limits.exchanges: 0 is out of range; write a value from 1 to 1048576\n" +
				"c.yaml:2: http.limits.idle_timeout: 0s is out of range; write a value from 1s to 1h"},
		"names without a file": {"clients:\n- name: c\n  http: dashboard\n",
			"c.yaml:3: clients[0].http: there is no file of tokens and passwords; write credentials: {http: FILE}"},
		"a name twice": {"credentials: {http: f}\nclients:\n- name: a\n  http: x\n- name: b\n  http: x\n",
			"c.yaml:6: clients[1].http: x is clients[0].http in line 4 too; give it to one client"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(tt.text)
			require.EqualError(t, err, tt.want)
		})
	}
}

// Files are named relative to the configuration.
func TestHTTPFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.yaml")
	require.NoError(t, os.WriteFile(path, []byte("credentials: {http: tokens}\n"), 0o600))
	c, err := config.Load(path)
	require.NoError(t, err)
	require.EqualValues(t, filepath.Join(dir, "tokens"), c.Credentials.HTTP)
	require.Equal(t, 10*time.Minute, c.HTTP.CORS.MaxAge)
}
