package main

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"time"

	"coapproxy/config"
	"coapproxy/oscorehop"
	"coapproxy/service"
)

// runInit is the subcommand init.
func runInit(_ context.Context, io stdio, args []string) int {
	flags := newFlags(io, "init", "[DIR]", "Writes config.yaml and files with fresh secrets into DIR (default: the current directory),\nreadable by their owner only. Existing files are never overwritten.")
	if code, done := parse(flags, args, 0, 1); done {
		return code
	}
	dir := "."
	if flags.NArg() == 1 {
		dir = flags.Arg(0)
	}
	paths, err := config.WriteInitial(dir)
	if err != nil {
		fmt.Fprintln(io.err, "coapproxy init:", err)
		return exitFailed
	}
	for _, p := range paths {
		fmt.Fprintln(io.out, "wrote", p)
	}
	file := filepath.Join(dir, "config.yaml")
	fmt.Fprintf(io.out, "\nNext:\n  1. edit %[1]s: which groups, on which interfaces, for which clients\n  2. coapproxy check %[1]s\n  3. coapproxy serve --config %[1]s\n", file)
	return exitOK
}

// runCheck is the subcommand check.
func runCheck(_ context.Context, io stdio, args []string) int {
	flags := newFlags(io, "check", "[FILE]", "Reads a configuration, "+defaultConfig+" without FILE, and prints every problem on a line of its own: file, line, key, what is wrong\nand what to write instead. Reads the files with keys and certificates, too. Exit code 1 when there is one.")
	if code, done := parse(flags, args, 0, 1); done {
		return code
	}
	file := defaultConfig
	if flags.NArg() == 1 {
		file = flags.Arg(0)
	}
	c, err := config.Load(file)
	if err != nil {
		fmt.Fprintln(io.err, err)
		return exitFailed
	}
	secrets, err := c.Credentials.Load()
	if err != nil {
		fmt.Fprintf(io.err, "%s: %v\n", file, err)
		return exitFailed
	}
	if err := oscorehop.CheckKeyring(c.OSCORE.Contexts, c.ClientContexts(), c.HopContexts()); err != nil {
		fmt.Fprintf(io.err, "%s: %v\n", file, err)
		return exitFailed
	}
	for _, warning := range secrets.Expiring(time.Now()) {
		fmt.Fprintf(io.err, "%s: warning: %s\n", file, warning)
	}
	fmt.Fprintf(io.out, "%s: ok, %s, %s, %s\n", file, counted(len(c.Listen), "listener", "listeners"), counted(len(c.Clients), "client", "clients"), counted(len(c.Groups), "group", "groups"))
	return exitOK
}

// runVersion is the subcommand version.
func runVersion(_ context.Context, io stdio, args []string) int {
	flags := newFlags(io, "version", "", "Prints the version, the Go version and the commit it was built from.")
	if code, done := parse(flags, args, 0, 0); done {
		return code
	}
	info, _ := debug.ReadBuildInfo()
	line := "coapproxy " + service.Version()
	if info != nil {
		line += " " + info.GoVersion
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				line += " " + s.Value
			}
		}
	}
	fmt.Fprintln(io.out, line)
	return exitOK
}
