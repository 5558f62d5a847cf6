package service

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"coapproxy/cache"
	"coapproxy/config"
	"coapproxy/exchange"
	"coapproxy/membership"
)

// cacheOf puts the cache in front of next.
func (p *Proxy) cacheOf(c *config.Config, next exchange.Handler, log *zap.Logger) (exchange.Handler, error) {
	p.save = func() {}
	shown := &cacheControl{bounds: c.Cache, metrics: p.metrics, members: &p.members, config: &p.config}
	defer func() { shown.register(p.control) }()
	if !c.Cache.Enabled {
		var err error
		p.shared, err = p.sharing(c, next)
		return p.shared, err
	}
	settings := cache.Defaults()
	settings.Next, settings.Engine, settings.Numbers, settings.Members = next, p.engine, p.numbers, currentMembers{&p.members}
	settings.HopLimit = uint8(c.Proxy.HopLimit)
	settings.MaxEntries, settings.MaxBytes = c.Cache.MaxEntries, int(c.Cache.MaxBytes)
	settings.MaxBody, settings.MaxVariants = int(c.Cache.MaxBody), c.Cache.MaxVariants
	settings.MaxAge = uint32(c.Cache.MaxAge / time.Second)
	settings.Observe = true
	settings.Stats, settings.Ages = &cache.Stats{}, &cache.Ages{}
	p.metrics.Register("cache", settings.Stats, func(i int) string { return cache.Bypass(i).String() })
	p.metrics.Register("cache", settings.Ages, cache.AgeName)
	k, err := cache.New(settings)
	if err != nil {
		return nil, err
	}
	shown.cache, p.shared = k, k
	if file := c.Cache.Persist; file != "" {
		load(k, file, log)
		if err := cache.CanSave(file); err != nil {
			log.Warn("stored responses will not be kept: their file cannot be written", zap.String("file", file), zap.Error(err))
		}
		p.save = func() {
			n, err := k.Save(file)
			if err != nil {
				log.Warn("stored responses not kept", zap.Error(err))
				return
			}
			log.Info("stored responses kept", zap.String("file", file), zap.Int("entries", n))
		}
	}
	return k, nil
}

// currentMembers is the Membership of the generation that serves.
type currentMembers struct {
	groups *atomic.Pointer[membership.Groups]
}

// Members implements cache.Membership.
func (m currentMembers) Members(group string, addr netip.AddrPort) (servers []netip.AddrPort, version uint64, complete bool) {
	return m.groups.Load().Members(group, addr)
}

// load takes over what the last run kept. A file that cannot be used never
// keeps the proxy from starting.
func load(k *cache.Cache, file string, log *zap.Logger) {
	n, err := k.Load(file)
	var damaged *cache.DamagedError
	switch {
	case errors.As(err, &damaged):
		log.Warn("damaged file of stored responses moved aside", zap.String("to", damaged.MovedTo), zap.Error(err))
	case err != nil:
		log.Warn("stored responses not read", zap.Error(err))
	default:
		log.Info("stored responses read", zap.String("file", file), zap.Int("entries", n))
	}
}

// maxLearned bounds the members learned per group.
const maxLearned = 4096

// maxRegistered bounds the members of a group that a directory lists.
const maxRegistered = 4096

// directories are the resource directories of a generation, by group.
type directories map[string]*membership.Directory

// directoriesOf makes the resource directories of a configuration; where the one
// before asked the same, they begin with what is known. leg asks them.
func (p *Proxy) directoriesOf(c *config.Config, leg exchange.Handler, log *zap.Logger) directories {
	all := make(directories)
	for i := range c.Groups {
		g := &c.Groups[i]
		if g.RD.URI.IsZero() {
			continue
		}
		addr := g.RD.URI.Addr
		if !addr.IsValid() {
			addr = c.Names[g.RD.URI.Host][0]
		}
		settings := membership.DirectoryConfig{Group: g.Name, Unicast: leg, Engine: p.engine, Path: g.RD.URI.Path,
			Query:      slices.Concat(g.RD.URI.Query, g.RD.Filter),
			Target:     exchange.Target{Scheme: g.RD.URI.Scheme, Host: g.RD.URI.Host, Addr: netip.AddrPortFrom(addr, g.RD.URI.Port)},
			MaxMembers: maxRegistered, Stats: &p.stats.directories, Log: log}
		if len(g.Interfaces) == 1 {
			settings.Zone = g.Interfaces[0]
		}
		all[g.Name] = membership.NewDirectory(settings, p.serving.Load().directoryOf(g, c))
	}
	return all
}

// directoryOf returns the resource directory of a group that is configured the
// same way; nil if there is none.
func (g *generation) directoryOf(group *config.Group, c *config.Config) *membership.Directory {
	if g == nil {
		return nil
	}
	for i := range g.config.Groups {
		if known := &g.config.Groups[i]; known.Name == group.Name && known.URI == group.URI && reflect.DeepEqual(known.RD, group.RD) &&
			slices.Equal(known.Interfaces, group.Interfaces) && slices.Equal(g.config.Names[group.RD.URI.Host], c.Names[group.RD.URI.Host]) {
			return g.directories[group.Name]
		}
	}
	return nil
}

// start asks for the first time.
func (d directories) start() {
	for _, one := range d {
		one.Start()
	}
}

// close ends the asking. The caller flushes the engine.
func (d directories) close() {
	for _, one := range d {
		one.Close()
	}
}

// membersOf returns who knows the members of the groups, and those of them that
// learn by listening. Of a group that is as it was in the generation before, what
// has been learned stays; before is nil at the start.
func membersOf(c *config.Config, before *generation, registered directories) (membership.Groups, map[string]*membership.Learned) {
	groups, learned := make(membership.Groups), make(map[string]*membership.Learned)
	for i := range c.Groups {
		g := &c.Groups[i]
		switch {
		case len(g.Members) > 0:
			var servers []netip.AddrPort
			for _, m := range g.Members {
				servers = append(servers, netip.AddrPortFrom(m.Addr, m.Port))
			}
			groups[g.Name] = membership.Static(servers)
		case g.Learned.Within > 0:
			l := before.learnedOf(g)
			if l == nil {
				l = membership.NewLearned(membership.LearnedConfig{Within: g.Learned.Within, Trusted: g.Learned.Trusted,
					Window: g.Leisure + 2*time.Second, MaxMembers: maxLearned})
			}
			groups[g.Name], learned[g.Name] = l, l
		case registered[g.Name] != nil:
			groups[g.Name] = registered[g.Name]
		}
	}
	return groups, learned
}

// learnedOf returns what g has learned of a group that is configured the same
// way; nil if there is none.
func (g *generation) learnedOf(group *config.Group) *membership.Learned {
	if g == nil {
		return nil
	}
	for i := range g.config.Groups {
		if known := &g.config.Groups[i]; known.Name == group.Name && known.URI == group.URI && known.Learned == group.Learned && known.Leisure == group.Leisure {
			return g.learned[group.Name]
		}
	}
	return nil
}
