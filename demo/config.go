package demo

import (
	_ "embed"
	"fmt"
	"net/netip"
	"os"
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
	listen := "coap://" + p.Listen.String()
	if p.HTTP.IsValid() {
		listen += "\n  - http://" + p.HTTP.String()
	}
	// No template: package text/template keeps the linker from leaving out what
	// the program does not use, some megabytes.
	var missing error
	text := os.Expand(configText, func(name string) string {
		switch name {
		case "LISTEN":
			return listen
		case "GROUP":
			return p.Group.String()
		case "INTERFACE":
			return Interface
		case "LEISURE":
			return p.Leisure.String()
		case "LOG_LEVEL":
			return p.LogLevel
		}
		missing = fmt.Errorf("embedded configuration: nothing is called %s", name)
		return ""
	})
	return []byte(text), missing
}
