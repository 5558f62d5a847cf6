package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"strings"

	"coapproxy/client"
	"coapproxy/config"
	"coapproxy/wire"
)

// wayFlags are the flags that say what a client of ours proves itself with to a
// proxy or server, and judges it by.
type wayFlags struct{ psk, authorities, certificate, key config.Place }

func (w *wayFlags) add(flags *flag.FlagSet) {
	place := func(p *config.Place, name, text string) {
		flags.Func(name, text, func(v string) error { *p = config.Place(v); return nil })
	}
	place(&w.psk, "psk", "for coaps: the pre-shared key in `FILE`, YAML with identity and key, such as psk.yaml of coapproxy init")
	place(&w.authorities, "authorities", "those whose certificates the other side may have, `FILE` in PEM (default those that the system trusts)")
	place(&w.certificate, "certificate", "what to prove oneself with, `FILE` in PEM, for those who ask for it")
	place(&w.key, "key", "the key of --certificate, `FILE` in PEM")
}

// destination is the proxy or server that is asked.
type destination struct {
	scheme, name string // name as it stands in the URI; empty for an address
	addr         netip.AddrPort
}

// way is how a destination is reached.
func (w *wayFlags) way(to destination) (client.Way, error) {
	out := client.Way{Scheme: to.scheme, Name: to.name}
	secured := strings.HasPrefix(to.scheme, "coaps")
	bad := func(text string) (client.Way, error) { return out, fmt.Errorf("%w: %s", client.ErrRequest, text) }
	switch {
	case (w.certificate == "") != (w.key == ""):
		return bad("--certificate and --key go together")
	case !secured && *w != (wayFlags{}):
		return bad("nothing is secured over " + to.scheme + ": --psk, --authorities, --certificate and --key are for coaps, coaps+tcp and coaps+ws")
	case !secured:
		return out, nil
	case w.psk != "" && to.scheme != "coaps":
		return bad("--psk is for coaps; " + to.scheme + " has certificates")
	}
	d := &out.DTLS
	authorities := w.authorities
	if authorities == "" && w.psk == "" {
		authorities = config.SystemAuthorities
	}
	var err error
	if authorities != "" {
		if d.Authorities, err = config.LoadAuthorities(authorities); err != nil {
			return out, fmt.Errorf("--authorities: %w", err)
		}
	}
	if w.certificate != "" {
		if d.Certificates, err = config.LoadCertificate(w.certificate, w.key); err != nil {
			return out, fmt.Errorf("--certificate: %w", err)
		}
	}
	if w.psk != "" {
		if d.KeyFor, err = loadPSK(w.psk); err != nil {
			return out, fmt.Errorf("--psk: %w", err)
		}
	}
	out.TLS = &tls.Config{RootCAs: d.Authorities, Certificates: d.Certificates, MinVersion: tls.VersionTLS13}
	return out, nil
}

// loadPSK reads a file with the key of a client, or one with the keys for servers.
func loadPSK(file config.Place) (func(netip.AddrPort, string) (string, []byte, bool), error) {
	if keys, err := config.LoadServerPSK(file); err == nil {
		return keys.For, nil
	}
	keys, err := config.LoadPSK(file)
	if err != nil {
		return nil, err
	}
	if len(keys) > 1 {
		return nil, errors.New("several identities; make a file with the one to use")
	}
	return func(netip.AddrPort, string) (string, []byte, bool) {
		for identity, key := range keys {
			return identity, key, true
		}
		return "", nil, false
	}, nil
}

// isCoAP reports whether a URI's scheme is one of CoAP, which can be spoken here.
func isCoAP(u wire.URI) bool { return strings.HasPrefix(u.Scheme, "coap") }

// overConnection reports whether a scheme has messages without type and ID.
func overConnection(scheme string) bool { return scheme != "coap" && scheme != "coaps" }
