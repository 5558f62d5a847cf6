package demo

import (
	"bytes"
	_ "embed"
	"fmt"
	"net/netip"
	"text/template"
	"time"
)

// Proxy is what differs between configurations of a proxy for the devices.
type Proxy struct {
	// Listen is where the proxy listens; port 0 lets the system choose.
	Listen netip.AddrPort
	// HTTP is where it takes HTTP requests, in the same way; nowhere if it is
	// not valid.
	HTTP netip.AddrPort
	// Group and Leisure are those of the devices.
	Group    netip.AddrPort
	Leisure  time.Duration
	LogLevel string // debug, info, warn or error
}

//go:embed config.yaml
var configText string

// Config returns a configuration file of a proxy in front of the devices, with
// comments for somebody who makes a configuration of their own of it.
func (p Proxy) Config() ([]byte, error) {
	t, err := template.New("demo").Option("missingkey=error").Parse(configText)
	if err != nil {
		return nil, fmt.Errorf("embedded configuration: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, struct {
		Proxy
		Interface string
	}{p, Interface}); err != nil {
		return nil, fmt.Errorf("embedded configuration: %w", err)
	}
	return out.Bytes(), nil
}
