package oscorehop

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// FileExtension is what the names of the files of a [Keyring] end with.
const FileExtension = ".json"

// Keyring is the Security Contexts of one endpoint by name: those of its clients,
// which requests are looked up in, and those for its next hops, which no request
// can name (OH-21). Safe for concurrent use.
type Keyring struct {
	keeper *Keeper

	loading sync.Mutex // held while files are read and contexts opened and closed

	mu      sync.RWMutex
	open    map[string]*loaded
	clients Namespace
	retired []*Context
}

// loaded is a context and the file it was made of.
type loaded struct {
	context *Context
	sum     [sha256.Size]byte
	client  bool
}

// NewKeyring returns an empty Keyring.
func NewKeyring(k *Keeper) *Keyring {
	return &Keyring{keeper: k, open: make(map[string]*loaded)}
}

// Change is what [Keyring.Load] did, by name.
type Change struct{ Opened, Replaced []string }

// Load makes the contexts of the given names, whose files are in the folder dir,
// available; it is called again when files or names have changed. A context whose
// file has not changed stays as it is. One with a new file is replaced; exchanges
// that run on the old one may go on until the next Load (OH-116). All files are
// read before anything is changed. It blocks on the disk. After an error of the
// store some contexts may be missing; calling it again is safe.
func (k *Keyring) Load(dir string, clients, hops []string) (Change, error) {
	k.loading.Lock()
	defer k.loading.Unlock()
	wanted, err := readKeyring(dir, clients, hops)
	if err != nil {
		return Change{}, err
	}
	var done Change
	errs := k.closeRetired()
	for _, name := range sortedNames(wanted) {
		w, old := wanted[name], k.open[name]
		switch {
		case old == nil:
			done.Opened = append(done.Opened, name)
		case w.sum == old.sum && w.client == old.client:
			continue
		default:
			done.Replaced = append(done.Replaced, name)
			k.mu.Lock()
			delete(k.open, name)
			k.clients.Remove(old.context)
			k.retired = append(k.retired, old.context)
			k.mu.Unlock()
		}
		c, err := Open(w.params, k.keeper)
		if errors.Is(err, ErrInUse) { // the same keys in a new file
			errs = errors.Join(errs, k.closeRetired())
			c, err = Open(w.params, k.keeper)
		}
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("%s: %w", contextFile(dir, name), err))
			continue
		}
		c.name = name
		if err := k.add(name, &loaded{context: c, sum: w.sum, client: w.client}); err != nil {
			errs = errors.Join(errs, err, c.Close())
		}
	}
	return done, errs
}

func (k *Keyring) add(name string, l *loaded) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.client {
		if err := k.clients.Add(l.context); err != nil {
			return err
		}
	}
	k.open[name] = l
	return nil
}

// Keep closes all contexts but those with the given names, and returns the names of
// those that are gone. It blocks on the disk.
func (k *Keyring) Keep(names ...string) ([]string, error) {
	k.loading.Lock()
	defer k.loading.Unlock()
	var gone []string
	var errs error
	for _, name := range k.names() {
		if slices.Contains(names, name) {
			continue
		}
		gone = append(gone, name)
		k.mu.Lock()
		old := k.open[name]
		delete(k.open, name)
		k.clients.Remove(old.context)
		k.mu.Unlock()
		errs = errors.Join(errs, old.context.Close())
	}
	return gone, errs
}

// names are the names of the open contexts in order.
func (k *Keyring) names() []string {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return sortedNames(k.open)
}

func (k *Keyring) closeRetired() error {
	k.mu.Lock()
	retired := k.retired
	k.retired = nil
	k.mu.Unlock()
	var errs error
	for _, c := range retired {
		errs = errors.Join(errs, c.Close())
	}
	return errs
}

// Find returns the context of a client that the option of a request names; the
// error is that of [Namespace.Find].
func (k *Keyring) Find(o Option) (*Context, error) { return k.clients.Find(o) }

// Get returns the context with a name, nil when there is none.
func (k *Keyring) Get(name string) *Context {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if l := k.open[name]; l != nil {
		return l.context
	}
	return nil
}

// All returns the open contexts in the order of their names.
func (k *Keyring) All() []*Context {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var out []*Context
	for _, name := range sortedNames(k.open) {
		out = append(out, k.open[name].context)
	}
	return out
}

// CheckKeyring reads what [Keyring.Load] would read and returns what is wrong.
func CheckKeyring(dir string, clients, hops []string) error {
	_, err := readKeyring(dir, clients, hops)
	return err
}

// wantedContext is a context file that was read.
type wantedContext struct {
	params Parameters
	sum    [sha256.Size]byte
	client bool
}

func readKeyring(dir string, clients, hops []string) (map[string]wantedContext, error) {
	if len(clients)+len(hops) == 0 {
		return nil, nil
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return nil, fmt.Errorf("OSCORE contexts: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("OSCORE contexts: %s is not a folder", dir)
	case info.Mode().Perm()&0o022 != 0: // whoever can replace the files has the keys
		return nil, fmt.Errorf("%w: others than its owner can write to the folder %s (mode %04o); run: chmod go-w %[2]s",
			ErrPermissions, dir, info.Mode().Perm())
	}
	wanted := make(map[string]wantedContext)
	byID := make(map[string]string)
	var errs error
	for i, name := range slices.Concat(clients, hops) {
		client := i < len(clients)
		if w, twice := wanted[name]; twice {
			if w.client != client {
				errs = errors.Join(errs, fmt.Errorf("the OSCORE context %s is both a client's and for a next hop", name))
			}
			continue
		}
		p, err := ReadFile(contextFile(dir, name))
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		data, err := p.MarshalFile()
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		if client {
			if other, taken := byID[string(p.RecipientID)]; taken { // OH-20
				errs = errors.Join(errs, fmt.Errorf("the OSCORE contexts %s and %s have the same recipient_id %x: their clients could not be told apart",
					other, name, p.RecipientID))
				continue
			}
			byID[string(p.RecipientID)] = name
		}
		wanted[name] = wantedContext{params: p, sum: sha256.Sum256(data), client: client}
	}
	return wanted, errs
}

// contextFile is where the context with a name is.
func contextFile(dir, name string) string { return filepath.Join(dir, name+FileExtension) }

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
