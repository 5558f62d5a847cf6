package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// newFlags returns the flag set of a subcommand, with a usage text that shows
// its flags the way they are typed.
func newFlags(io stdio, name, args, text string) *flag.FlagSet {
	flags := flag.NewFlagSet("coapproxy "+name, flag.ContinueOnError)
	synopsis := strings.TrimSpace("usage: coapproxy " + name + " " + args)
	flags.SetOutput(usageOutput{io.err, io.out, synopsis})
	flags.Usage = func() {
		w := flags.Output()
		fmt.Fprintf(w, "%s\n\n%s\n", synopsis, text)
		any := false
		flags.VisitAll(func(f *flag.Flag) {
			if !any {
				fmt.Fprintln(w)
			}
			any = true
			value, help := flag.UnquoteUsage(f)
			shown := "--" + f.Name
			if value != "" {
				shown += " " + value
			}
			fmt.Fprintf(w, "  %-28s %s", shown, help)
			if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" {
				fmt.Fprintf(w, " (default %s)", f.DefValue)
			}
			fmt.Fprintln(w)
		})
	}
	return flags
}

// usageOutput is where what nobody asked for goes: mistakes in the arguments. A
// usage text that was asked for goes elsewhere.
type usageOutput struct {
	io.Writer
	asked    io.Writer
	synopsis string
}

// parse parses a subcommand's arguments. done means that the program ends with
// the code: help was asked for, or the arguments are wrong.
func parse(flags *flag.FlagSet, args []string, least, most int) (code int, done bool) {
	usage := flags.Usage
	flags.Usage = func() {} // a mistake must not be pushed off the screen by all the flags there are
	err := flags.Parse(args)
	flags.Usage = usage
	switch {
	case errors.Is(err, flag.ErrHelp):
		if u, ok := flags.Output().(usageOutput); ok {
			flags.SetOutput(u.asked)
		}
		flags.Usage()
		return exitOK, true
	case err != nil:
		hint(flags)
		return exitUsage, true
	case flags.NArg() < least || flags.NArg() > most:
		wrongNumber(flags)
		return exitUsage, true
	}
	return exitOK, false
}

// wrongNumber says that there are too many or too few arguments.
func wrongNumber(flags *flag.FlagSet) {
	fmt.Fprintf(flags.Output(), "%s: wrong number of arguments\n", flags.Name())
	hint(flags)
}

// hint says how the subcommand is used, in two lines.
func hint(flags *flag.FlagSet) {
	w := flags.Output()
	if u, ok := w.(usageOutput); ok {
		fmt.Fprintln(w, u.synopsis)
	}
	fmt.Fprintf(w, "%q tells more\n", flags.Name()+" --help")
}

// timeFlag is a time on the command line: 1m30s, or a number of seconds.
type timeFlag struct{ to *time.Duration }

func (t timeFlag) String() string {
	if t.to == nil {
		return ""
	}
	return t.to.String()
}

func (t timeFlag) Set(text string) error {
	if seconds, err := strconv.ParseUint(text, 10, 32); err == nil {
		*t.to = time.Duration(seconds) * time.Second
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("write a time such as 5s, 300ms or 1m30s")
	}
	*t.to = d
	return nil
}

// timeVar adds a flag for a time, of which value is the default.
func timeVar(flags *flag.FlagSet, to *time.Duration, name string, value time.Duration, usage string) {
	*to = value
	flags.Var(timeFlag{to}, name, usage)
}
