// Command coapproxy is a multicast-capable CoAP proxy.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes, for service managers and scripts.
const (
	exitOK     = 0
	exitFailed = 1  // it did not work: a port in use, no answer, a bad file given to check
	exitUsage  = 2  // the command line is wrong
	exitConfig = 78 // the configuration is wrong; starting again will not help (EX_CONFIG)
)

// command is one subcommand. run gets what follows its name.
type command struct {
	name, args, summary string
	run                 func(ctx context.Context, io stdio, args []string) int
}

// stdio is where a subcommand reads and writes.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

func commands() []command {
	return []command{
		{"demo", "[flags]", "run a proxy with five simulated devices and ask them all at once", runDemo},
		{"serve", "[--config FILE]", "run the proxy", runServe},
		{"init", "[DIR]", "write a first configuration with fresh secrets", runInit},
		{"check", "[FILE]", "say what is wrong with a configuration", runCheck},
		{"request", "[flags] METHOD URI", "send a request, to a group too, and print every response", runRequest},
		{"oscore", "new|show FILE ...", "make the two ends of an OSCORE context, or show one", runOSCORE},
		{"trace", "[flags] --via PROXY URI", "show the proxies on the way to a URI", runTrace},
		{"decode", "HEX", "explain a CoAP message option by option", runDecode},
		{"status", "[flags]", "tell how the running proxy is", runStatus},
		{"reload", "[flags]", "have the running proxy read its configuration again", runReload},
		{"cache", "show|flush|stats", "show or drop the stored responses of the running proxy", runCache},
		{"manual", "", "print the manual page", runManual},
		{"completion", "bash|zsh|fish", "print a script that completes commands and flags in a shell", runCompletion},
		{"version", "", "print the version", runVersion},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	code := run(ctx, stdio{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:])
	stop()
	os.Exit(code)
}

// run finds the subcommand and runs it; it returns the exit code.
func run(ctx context.Context, io stdio, args []string) int {
	if len(args) == 0 {
		usage(io.err)
		return exitUsage
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		usage(io.out)
		return exitOK
	}
	for _, c := range commands() {
		if c.name == args[0] {
			return c.run(ctx, io, args[1:])
		}
	}
	fmt.Fprintf(io.err, "coapproxy: unknown command %q\n\n", args[0])
	usage(io.err)
	return exitUsage
}

func usage(w io.Writer) {
	fmt.Fprint(w, "coapproxy is a multicast-capable CoAP proxy: one request in, a whole group's responses out.\n\nusage: coapproxy COMMAND ...\n\n")
	width := 0
	for _, c := range commands() {
		width = max(width, len(c.args))
	}
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-10s %-*s  %s\n", c.name, width, c.args, c.summary)
	}
	fmt.Fprint(w, "\n\"coapproxy COMMAND --help\" tells more. Start with: coapproxy demo\n")
}
