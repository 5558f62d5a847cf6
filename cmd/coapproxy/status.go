package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"coapproxy/control"
)

// runStatus is the subcommand status.
func runStatus(ctx context.Context, stdio stdio, args []string) int {
	flags := newFlags(stdio, "status", "[flags]", "Tells how the running proxy is: listeners, clients, groups, exchanges, cache, refusals, and what should be\nlooked at. Exit codes: 0 told, 1 the proxy could not be asked, 2 wrong command line.")
	var c controlFlags
	c.register(flags)
	if code, done := parse(flags, args, 0, 0); done {
		return code
	}
	return ask(ctx, stdio, &c, http.MethodGet, "/v1/status", nil, printStatus)
}

// runReload is the subcommand reload.
func runReload(ctx context.Context, stdio stdio, args []string) int {
	flags := newFlags(stdio, "reload", "[flags]", "Has the running proxy read its configuration again and prints what changed. A file with a mistake is refused\n"+
		"with every reason, and the proxy goes on as it was. Exit codes: 0 the proxy works by the file now, 1 refused, or\nthe proxy could not be asked, 2 wrong command line.")
	var c controlFlags
	c.register(flags)
	if code, done := parse(flags, args, 0, 0); done {
		return code
	}
	client, socket, err := c.client()
	if err != nil {
		fmt.Fprintln(stdio.err, err)
		return exitFailed
	}
	// The proxy is asked even where its file is seen to be wrong: its log and its
	// metrics shall tell, too.
	var answer control.Reloaded
	err = c.ask(ctx, client, http.MethodPost, "/v1/reload", nil, &answer)
	var refused *control.StatusError
	switch {
	case errors.As(err, &refused) && refused.Status == http.StatusUnprocessableEntity:
		fmt.Fprintln(stdio.err, refused.Message)
		fmt.Fprintln(stdio.err, "coapproxy: refused; the proxy goes on as it was")
		return exitFailed
	case err != nil:
		if c.mistakes != nil {
			fmt.Fprintln(stdio.err, c.mistakes)
		}
		fmt.Fprintln(stdio.err, "coapproxy:", explainControl(err, socket))
		return exitFailed
	}
	show(stdio, &c, &answer, printReloaded)
	return exitOK
}

func printReloaded(out io.Writer, r *control.Reloaded) {
	fmt.Fprintln(out, "read again;", counted(len(r.Changed), "change", "changes"))
	for _, change := range r.Changed {
		fmt.Fprintln(out, " ", change)
	}
	if len(r.Restart) > 0 {
		fmt.Fprintln(out, "takes effect at the next start only:")
	}
	for _, change := range r.Restart {
		fmt.Fprintln(out, " ", change)
	}
}

func printStatus(out io.Writer, s *control.Status) {
	fmt.Fprintf(out, "coapproxy %s, process %d, up %s", s.Version, s.PID, age(s.Uptime))
	if !s.Ready {
		fmt.Fprint(out, ", stopping")
	}
	fmt.Fprintf(out, "\nconfiguration %s, read %s\n", s.Config, s.Read.Format(time.RFC3339))
	for _, w := range s.Warnings {
		fmt.Fprintln(out, "warning:", w)
	}
	fmt.Fprintln(out, "\nlisteners")
	for _, l := range s.Listeners {
		fmt.Fprintln(out, " ", l)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nclients\trequests\trunning\tlast\n")
	for _, c := range s.Clients {
		last := "never"
		if c.Last != nil {
			last = c.Last.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "  %s\t%d\t%d\t%s\n", c.Name, c.Requests, c.Running, last)
	}
	fmt.Fprintf(w, "\ngroups\theard\tinterfaces\turi\n")
	for _, g := range s.Groups {
		fmt.Fprintf(w, "  %s\t%d\t%s\t%s\n", g.Name, g.Heard, orDash(strings.Join(g.Interfaces, " ")), g.URI)
	}
	if len(s.NextHops) > 0 {
		fmt.Fprintf(w, "\nnext hops\tup\trequests\tresponses\tround trip\turi\n")
	}
	for _, h := range s.NextHops {
		trip := "-"
		if h.RoundTrip > 0 {
			trip = fmt.Sprintf("%.1f ms", 1000*h.RoundTrip)
		}
		fmt.Fprintf(w, "  %s\t%d\t%d\t%d\t%s\t%s\n", h.Name, h.Up, h.Requests, h.Responses, trip, h.URI)
	}
	fmt.Fprintf(w, "\nexchanges\t%d running, %d waiting\n", s.Exchanges.Running, s.Exchanges.Queued)
	printCounts(w, s.Exchanges.Outcomes)
	if s.Cache == nil {
		fmt.Fprintf(w, "\ncache\toff\n")
	} else {
		fmt.Fprintf(w, "\ncache\t%s, %d bytes, %s, %s\n", counted(int(s.Cache.Entries), "entry", "entries"), s.Cache.Bytes,
			counted(int(s.Cache.Hits), "hit", "hits"), counted(int(s.Cache.Misses), "miss", "misses"))
	}
	fmt.Fprintf(w, "\nrefusals\t\n")
	printCounts(w, s.Refusals)
	_ = w.Flush()
}

// printCounts prints what is not 0, the most first.
func printCounts(w io.Writer, counts map[string]int64) {
	names := slices.Collect(maps.Keys(counts))
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b)) })
	for _, name := range names {
		fmt.Fprintf(w, "  %s\t%d\n", name, counts[name])
	}
}
