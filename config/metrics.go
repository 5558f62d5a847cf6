package config

import (
	"net/netip"
)

// Metrics says where the proxy tells over HTTP how it is.
type Metrics struct {
	// Listen is an address and port, [MetricsAuto] or [MetricsOff]; use
	// [Metrics.Addr].
	Listen string `yaml:"listen"`
	// PProf serves profiles of the program there too.
	PProf bool `yaml:"pprof"`
}

// The values of Metrics.Listen that are no addresses.
const (
	// MetricsAuto is DefaultMetrics, and nowhere if that is taken.
	MetricsAuto = "auto"
	MetricsOff  = "off"
)

// DefaultMetrics is where metrics are told unless the configuration says
// something else.
const DefaultMetrics = "127.0.0.1:9683"

// Addr returns the address to listen on, invalid for none. required is true if
// the operator asked for it, so that a proxy without it is not what he wanted.
func (m Metrics) Addr() (addr netip.AddrPort, required bool) {
	switch m.Listen {
	case MetricsOff:
		return netip.AddrPort{}, false
	case MetricsAuto:
		return netip.MustParseAddrPort(DefaultMetrics), false
	}
	addr, err := netip.ParseAddrPort(m.Listen)
	return addr, err == nil
}

// metrics checks metrics.
func (v *validator) metrics() {
	m := v.c.Metrics
	if addr, ok := m.Addr(); m.Listen != MetricsAuto && m.Listen != MetricsOff && (!ok || addr.Addr().IsMulticast()) {
		v.add("metrics.listen", show(m.Listen)+" is not an address and port", "write auto, off or e.g. "+DefaultMetrics)
	}
}
