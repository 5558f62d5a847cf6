package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"

	"coapproxy/service"
)

// page is what a subcommand says about itself: the one source of the manual page
// and of the completions.
type page struct {
	name, args, summary string
	words               []string // what can come first behind the name, where that is one of several words
	text                []string // lines
	flags               []flagText
}

// flagText is a flag as the usage text shows it.
type flagText struct {
	name  string // without --
	value string // its placeholder, empty for a switch
	help  string
}

// flagLine is a line of a usage text that shows a flag; see newFlags.
var flagLine = regexp.MustCompile(`^  --([a-z0-9-]+)(?: ([^ a-z][^ ]*))? +(.*)$`)

// pages asks every subcommand for its usage text.
func pages(ctx context.Context) []page {
	var out []page
	for _, c := range commands() {
		p := page{name: c.name, args: c.args, summary: c.summary, words: alternatives(c.args)}
		lines := c.help(ctx)
		if len(lines) > 0 && strings.HasPrefix(lines[0], "usage: ") {
			p.args = strings.TrimSpace(strings.TrimPrefix(lines[0], "usage: coapproxy "+c.name))
			lines = lines[1:]
		}
		for _, line := range lines {
			if !p.takeFlag(line) {
				p.text = append(p.text, line)
			}
		}
		for _, word := range p.words {
			for _, line := range c.help(ctx, word) {
				p.takeFlag(line)
			}
		}
		out = append(out, p)
	}
	return out
}

// help is the usage text of a subcommand, or of one of the words it takes.
func (c command) help(ctx context.Context, words ...string) []string {
	var usage bytes.Buffer
	c.run(ctx, stdio{in: strings.NewReader(""), out: &usage, err: io.Discard}, append(words, "--help"))
	return strings.Split(strings.TrimRight(usage.String(), "\n"), "\n")
}

// alternatives lists what a subcommand takes as the first word of its
// arguments, where its synopsis says so: "show|flush ..." or "bash|zsh|fish".
func alternatives(args string) []string {
	first, _, _ := strings.Cut(args, " ")
	if !strings.Contains(first, "|") || strings.ContainsAny(first, "[]<>") {
		return nil
	}
	return strings.Split(first, "|")
}

// takeFlag tells whether a line of a usage text shows a flag, and takes note of
// each once.
func (p *page) takeFlag(line string) bool {
	m := flagLine.FindStringSubmatch(line)
	if m == nil {
		return false
	}
	if !slices.ContainsFunc(p.flags, func(f flagText) bool { return f.name == m[1] }) {
		p.flags = append(p.flags, flagText{name: m[1], value: m[2], help: m[3]})
	}
	return true
}

// runManual is the subcommand manual.
func runManual(ctx context.Context, io stdio, args []string) int {
	flags := newFlags(io, "manual", "", "Prints the manual page, coapproxy(1), in the man format: coapproxy manual | man -l -")
	if code, done := parse(flags, args, 0, 0); done {
		return code
	}
	var b bytes.Buffer
	writeManual(&b, pages(ctx))
	if _, err := b.WriteTo(io.out); err != nil {
		fmt.Fprintln(io.err, "coapproxy manual:", err)
		return exitFailed
	}
	return exitOK
}

// built is the date of the commit that the program was built from, if known.
func built() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if date, _, ok := strings.Cut(s.Value, "T"); ok && s.Key == "vcs.time" {
			return date
		}
	}
	return ""
}

// roff escapes what means something to troff at the beginning of a line and
// inside it.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "~", `\(ti`, "^", `\(ha`, "`", `\(ga`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

// writeText writes running text; indented lines are shown as they are.
func writeText(b *bytes.Buffer, text []string) {
	filled, begun, gap := true, false, false
	for _, line := range text {
		if strings.TrimSpace(line) == "" {
			gap = begun
			continue
		}
		if indented := strings.HasPrefix(line, " "); indented == filled {
			fmt.Fprint(b, map[bool]string{true: ".nf\n", false: ".fi\n"}[indented])
			filled = !indented
		} else if gap {
			fmt.Fprint(b, ".PP\n")
		}
		begun, gap = true, false
		fmt.Fprintln(b, roff(line))
	}
	if !filled {
		fmt.Fprint(b, ".fi\n")
	}
}

func writeManual(b *bytes.Buffer, pages []page) {
	fmt.Fprintf(b, ".TH COAPPROXY 1 \"%s\" \"coapproxy %s\" \"User Commands\"\n", built(), roff(service.Version()))
	fmt.Fprint(b, ".SH NAME\ncoapproxy \\- a CoAP proxy that reaches whole groups\n.SH SYNOPSIS\n")
	for _, p := range pages {
		fmt.Fprintf(b, ".B coapproxy %s\n", p.name)
		if p.args != "" {
			fmt.Fprintln(b, roff(p.args))
		}
		fmt.Fprint(b, ".br\n")
	}
	fmt.Fprint(b, `.SH DESCRIPTION
One unicast request in, a whole group's responses out: a client says how long it will wait, the proxy sends its request
to a group of CoAP servers over IP multicast, and relays every server's response as a message of its own, each naming
the server it comes from. It is a complete CoAP forward\-proxy besides.
.SH COMMANDS
`)
	for _, p := range pages {
		fmt.Fprintf(b, ".SS \"coapproxy %s\"\n", p.name)
		writeText(b, p.text)
		for _, f := range p.flags {
			fmt.Fprintf(b, ".TP\n\\fB\\-\\-%s\\fP", roff(f.name))
			if f.value != "" {
				fmt.Fprintf(b, " \\fI%s\\fP", roff(f.value))
			}
			fmt.Fprintf(b, "\n%s\n", roff(f.help))
		}
	}
	fmt.Fprintf(b, `.SH FILES
.TP
.I %s
the configuration; config.example.yaml in the documentation has every key with its default and meaning
.SH SIGNALS
of
.B coapproxy serve
.TP
.B SIGTERM, SIGINT
take no more requests, give running exchanges limits.grace to finish, and end; a second one ends at once
.TP
.B SIGHUP
read the configuration again; one with a mistake changes nothing
.TP
.B SIGUSR1
write the counters that are not zero to the log
.SH EXIT STATUS
0 on success, 1 when it did not work, 2 for a wrong command line, 78 for a wrong configuration.
.SH SEE ALSO
draft\-ietf\-core\-groupcomm\-proxy, RFC 7252, RFC 7641, RFC 7959, RFC 8075, RFC 8323, RFC 8613
`, roff(defaultConfig))
}
