package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"coapproxy/control"
	"coapproxy/wire"
)

const cacheUsage = `usage: coapproxy cache show|flush|stats [flags]

Shows or drops stored responses of the running proxy.

  coapproxy cache show     lists entries, the most recently used first
  coapproxy cache flush    drops entries: all of them, or those that the flags select
  coapproxy cache stats    tells how full the cache is and what became of requests

"coapproxy cache show --help" lists the flags. Exit codes: 0 done, 1 the proxy could not be asked or refused,
2 wrong command line.
`

// runCache is the subcommand cache.
func runCache(ctx context.Context, stdio stdio, args []string) int {
	if len(args) == 0 {
		fmt.Fprint(stdio.err, cacheUsage)
		return exitUsage
	}
	switch args[0] {
	case "show":
		return cacheShow(ctx, stdio, args[1:])
	case "flush":
		return cacheFlush(ctx, stdio, args[1:])
	case "stats":
		return cacheStats(ctx, stdio, args[1:])
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdio.out, cacheUsage)
		return exitOK
	}
	fmt.Fprintf(stdio.err, "coapproxy cache: unknown command %q\n\n%s", args[0], cacheUsage)
	return exitUsage
}

// cacheQuery are the flags that select entries.
type cacheQuery struct {
	values url.Values
	stale  bool
}

func (q *cacheQuery) register(flags *flag.FlagSet) {
	q.values = make(url.Values)
	for _, f := range []struct{ name, text string }{
		{"group", "only of the servers in this group, by its `NAME` in the configuration"},
		{"uri", "only of this `URI`, with any query if it has none; a group's URI stands for each of its servers"},
		{"server", "only of this server, `ADDRESS[:PORT]`"},
		{"path", "only what is at or below this `PATH`"},
		{"client", "only the private entries of this client, by its `NAME` in the configuration"},
	} {
		flags.Func(f.name, f.text, func(v string) error { q.values.Set(f.name, v); return nil })
	}
	flags.BoolVar(&q.stale, "stale", false, "only what is not fresh any more")
}

// query returns what selects the entries in a request to the proxy.
func (q *cacheQuery) query() url.Values {
	if q.stale {
		q.values.Set("stale", "true")
	}
	return q.values
}

// ask asks the proxy and prints the answer as JSON if that is wanted, else with
// print.
func ask[T any](ctx context.Context, stdio stdio, c *controlFlags, method, path string, query url.Values, print func(io.Writer, *T)) int {
	client, socket, err := c.client()
	if err != nil {
		fmt.Fprintln(stdio.err, err)
		return exitFailed
	}
	if c.mistakes != nil {
		fmt.Fprintf(stdio.err, "coapproxy: %s has mistakes, see coapproxy check; asking the proxy at %s\n", c.config, socket)
	}
	var answer T
	if err := c.ask(ctx, client, method, path, query, &answer); err != nil {
		fmt.Fprintln(stdio.err, "coapproxy:", explainControl(err, socket))
		return exitFailed
	}
	show(stdio, c, &answer, print)
	return exitOK
}

// show prints an answer of the proxy.
func show[T any](stdio stdio, c *controlFlags, answer *T, print func(io.Writer, *T)) {
	if !c.json {
		print(stdio.out, answer)
		return
	}
	e := json.NewEncoder(stdio.out)
	e.SetIndent("", "  ")
	_ = e.Encode(answer)
}

func cacheShow(ctx context.Context, stdio stdio, args []string) int {
	flags := newFlags(stdio, "cache show", "[flags]", "Lists the stored responses of the running proxy, the most recently used first.")
	var c controlFlags
	var q cacheQuery
	c.register(flags)
	q.register(flags)
	limit := flags.Int("limit", 1000, "at most `N` entries")
	if code, done := parse(flags, args, 0, 0); done {
		return code
	}
	query := q.query()
	query.Set("limit", strconv.Itoa(*limit))
	return ask(ctx, stdio, &c, http.MethodGet, "/v1/cache/entries", query, printEntries)
}

func cacheFlush(ctx context.Context, stdio stdio, args []string) int {
	flags := newFlags(stdio, "cache flush", "[flags]", "Drops stored responses of the running proxy: all of them, or those that the flags select. Exchanges under\nway store what they bring all the same.")
	var c controlFlags
	var q cacheQuery
	c.register(flags)
	q.register(flags)
	if code, done := parse(flags, args, 0, 0); done {
		return code
	}
	return ask(ctx, stdio, &c, http.MethodPost, "/v1/cache/flush", q.query(), func(out io.Writer, f *control.CacheFlushed) {
		fmt.Fprintf(out, "%s dropped\n", counted(f.Flushed, "entry", "entries"))
	})
}

func cacheStats(ctx context.Context, stdio stdio, args []string) int {
	flags := newFlags(stdio, "cache stats", "[flags]", "Tells how full the cache of the running proxy is and what became of requests.")
	var c controlFlags
	c.register(flags)
	if code, done := parse(flags, args, 0, 0); done {
		return code
	}
	return ask(ctx, stdio, &c, http.MethodGet, "/v1/cache", nil, printSummary)
}

func printEntries(out io.Writer, e *control.CacheEntries) {
	if g := e.Group; g != nil {
		fmt.Fprintf(out, "group %s, %s: %s (%s)", g.Name, g.URI, counted(len(g.Members), "known member", "known members"), g.Source)
		if !g.Complete {
			fmt.Fprint(out, ", not known to be all")
		}
		if d := g.Directory; d != nil && d.Error != "" {
			fmt.Fprintf(out, "; the resource directory %s: %s", d.URI, d.Error)
		}
		fmt.Fprintln(out)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(e.Entries) > 0 {
		fmt.Fprintln(w, "URI\tMETHOD\tCODE\tFORMAT\tBODY\tETAG\tAGE\tFRESH FOR\tCLIENT")
	}
	for _, i := range e.Entries {
		fresh := "stale"
		if i.Fresh > 0 {
			fresh = age(i.Fresh)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", i.URI, i.Method, i.Code, formatName(i.ContentFormat), i.Payload, orDash(i.ETag),
			age(i.Age), fresh, clientText(&i))
	}
	_ = w.Flush()
	switch {
	case e.Total > len(e.Entries):
		fmt.Fprintf(out, "%d of %s; see --limit\n", len(e.Entries), counted(e.Total, "entry", "entries"))
	default:
		fmt.Fprintln(out, counted(e.Total, "entry", "entries"))
	}
}

func printSummary(out io.Writer, s *control.CacheSummary) {
	if !s.Enabled {
		fmt.Fprintln(out, "the cache is not enabled (cache.enabled)")
		return
	}
	fmt.Fprintf(out, "entries  %d of %d\nbytes    %d of %d\n\n", s.Counters["entries"], s.MaxEntries, s.Counters["bytes"], s.MaxBytes)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, name := range slices.Sorted(maps.Keys(s.Counters)) {
		if n := s.Counters[name]; n != 0 && name != "entries" && name != "bytes" {
			fmt.Fprintf(w, "%s\t%d\n", name, n)
		}
	}
	_ = w.Flush()
}

func counted(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + more
}

// age writes seconds as a person reads them: to a second, from ten seconds on.
func age(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d >= 10*time.Second {
		return d.Truncate(time.Second).String()
	}
	return d.Truncate(100 * time.Millisecond).String()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func formatName(format *uint32) string {
	switch {
	case format == nil:
		return "-"
	case *format <= 0xffff:
		if name, ok := wire.ContentFormatName(uint16(*format)); ok {
			return strings.ReplaceAll(name, " ", "")
		}
	}
	return strconv.FormatUint(uint64(*format), 10)
}

func clientText(e *control.CacheEntry) string {
	switch {
	case !e.Private:
		return "any"
	case e.Client == "":
		return "(unnamed)"
	}
	return e.Client
}
