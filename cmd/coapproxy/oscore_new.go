package main

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"coapproxy/oscorehop"
)

const oscoreText = `"new" makes the two ends of an OSCORE context, with fresh keys, each in a file that only its owner can read: one
for the proxy, to be put into the folder oscore.contexts and named in a client's entry (without .json), and one for
the client, which takes it with --oscore, or for a proxy before this one. Existing files are never overwritten.
Neither file may be copied back from a backup once it was in use.
"show" prints what is in a context file, without its keys.`

// runOSCORE is the subcommand oscore.
func runOSCORE(_ context.Context, stdio stdio, args []string) int {
	pair := oscorehop.PairOptions{}
	flags := newFlags(stdio, "oscore", "new [flags] PROXY-FILE CLIENT-FILE | show FILE", oscoreText)
	flags.Func("algorithm", "the AEAD `NAME`: AES-CCM-16-64-128, AES-CCM-16-128-128, A128GCM, A256GCM or ChaCha20/Poly1305 (default AES-CCM-16-128-128)", func(v string) (err error) {
		pair.Algorithm, err = oscorehop.ParseAlgorithm(v)
		return err
	})
	flags.Func("hkdf", "the hash `NAME`: SHA-256 or SHA-512 (default SHA-256)", func(v string) (err error) {
		pair.Hash, err = oscorehop.ParseHash(v)
		return err
	})
	hexFlag(flags, "client-id", "the Sender ID of the client, `HEX` (default 4 random bytes)", &pair.ClientID)
	hexFlag(flags, "proxy-id", "the Sender ID of the proxy, `HEX` (default 4 random bytes)", &pair.ProxyID)
	hexFlag(flags, "id-context", "an ID Context, `HEX` (default none)", &pair.IDContext)
	timeVar(flags, &pair.Lifetime, "lifetime", 0, "how long the keys may be used, e.g. 720h (`TIME`; default no end)")
	positional, code, done := parseMixed(flags, args, 2, 3)
	if done {
		return code
	}
	fail := func(code int, err error) int {
		fmt.Fprintln(stdio.err, "coapproxy oscore:", err)
		return code
	}
	switch {
	case positional[0] == "new" && len(positional) == 3:
		if pair.Lifetime < 0 {
			return fail(exitUsage, errors.New("--lifetime is positive"))
		}
		if err := newPair(pair, positional[1], positional[2]); err != nil {
			return fail(exitFailed, err)
		}
		fmt.Fprintln(stdio.out, "wrote", positional[1])
		fmt.Fprintln(stdio.out, "wrote", positional[2])
		return exitOK
	case positional[0] == "show" && len(positional) == 2:
		p, err := oscorehop.ReadFile(positional[1])
		if err != nil {
			return fail(exitFailed, err)
		}
		showContext(stdio, p)
		return exitOK
	}
	fmt.Fprintf(stdio.err, "coapproxy oscore: write new PROXY-FILE CLIENT-FILE, or show FILE\n\n")
	flags.Usage()
	return exitUsage
}

func hexFlag(flags *flag.FlagSet, name, text string, into *[]byte) {
	flags.Func(name, text, func(v string) error {
		value, err := hex.DecodeString(v)
		if err != nil {
			return errors.New("not in hexadecimal")
		}
		*into = value
		return nil
	})
}

// newPair writes both ends of a new context, or none.
func newPair(o oscorehop.PairOptions, proxyFile, clientFile string) error {
	client, proxy, err := oscorehop.NewPair(o)
	if err != nil {
		return err
	}
	if err := proxy.WriteFile(proxyFile); err != nil {
		return err
	}
	if err := client.WriteFile(clientFile); err != nil {
		return errors.Join(err, os.Remove(proxyFile)) //nolint:gosec // the file that the user names, just made
	}
	return nil
}

func showContext(stdio stdio, p oscorehop.Parameters) {
	line := func(name, value string) { fmt.Fprintf(stdio.out, "%-14s %s\n", name, value) }
	line("algorithm", p.Algorithm.String())
	line("hkdf", p.Hash.String())
	line("sender id", hex.EncodeToString(p.SenderID))
	line("recipient id", hex.EncodeToString(p.RecipientID))
	if p.IDContext != nil {
		line("id context", hex.EncodeToString(p.IDContext))
	}
	limits := p.Algorithm.Limits()
	line("limits", fmt.Sprintf("%d messages, %d failures, %d bytes", limits.Encryptions, limits.Failures, limits.Size))
	if !p.Created.IsZero() {
		line("created", p.Created.Format(time.RFC3339))
	}
	if !p.Expires.IsZero() {
		line("expires", p.Expires.Format(time.RFC3339))
	}
}
