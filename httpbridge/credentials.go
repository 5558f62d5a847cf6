package httpbridge

import (
	"bufio"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/crypto/bcrypt"
)

// Credentials are the bearer tokens and the passwords that clients may prove
// themselves with; only hashes of them are kept (HC-100). Safe for concurrent
// use.
//
// Each line of the file is one of
//
//	NAME bearer SHA256-OF-THE-TOKEN-IN-HEX
//	NAME basic USER BCRYPT-HASH
//
// where NAME is how an entry of the proxy's clients refers to it. Empty lines and
// lines that begin with # mean nothing. A token must be random, at least 128
// bits; a password is protected by bcrypt, and 72 bytes of it count.
type Credentials struct {
	tokens map[[sha256.Size]byte]string // hash: client
	users  map[string]basicUser
	names  []string      // of the clients, each once
	decoy  []byte        // hash that unknown users are compared with
	slots  chan struct{} // bounds the passwords checked at a time
	// proven remembers passwords that were right, by a keyed hash: bcrypt is
	// slow on purpose.
	proven *lru.Cache[[sha256.Size]byte, provenPassword]
	key    []byte
}

type provenPassword struct {
	client string
	until  time.Time
}

type basicUser struct {
	client string
	hash   []byte
}

const (
	maxProven        = 1024
	provenLifetime   = time.Minute
	passwordChecks   = 2
	passwordPatience = time.Second
	decoyCost        = bcrypt.DefaultCost
	maxCost          = 14 // seconds of work per password beyond
)

// ReadCredentials reads credentials in the form of the file.
func ReadCredentials(r io.Reader) (*Credentials, error) {
	c := &Credentials{tokens: make(map[[sha256.Size]byte]string), users: make(map[string]basicUser),
		slots: make(chan struct{}, passwordChecks), key: make([]byte, sha256.Size)}
	var err error
	if c.proven, err = lru.New[[sha256.Size]byte, provenPassword](maxProven); err != nil {
		return nil, err
	}
	if _, err := rand.Read(c.key); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(r)
	for number := 1; lines.Scan(); number++ {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if err := c.add(words); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if !slices.Contains(c.names, words[0]) {
			c.names = append(c.names, words[0])
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(c.users) > 0 {
		if c.decoy, err = bcrypt.GenerateFromPassword(c.key[:16], decoyCost); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Credentials) add(words []string) error {
	switch {
	case len(words) == 3 && words[1] == "bearer":
		var hash [sha256.Size]byte
		b, err := hex.DecodeString(words[2])
		if err != nil || len(b) != len(hash) {
			return fmt.Errorf("a bearer token is given by its SHA-256 in 64 hexadecimal digits")
		}
		copy(hash[:], b)
		if _, known := c.tokens[hash]; known {
			return fmt.Errorf("this token is there twice")
		}
		c.tokens[hash] = words[0]
	case len(words) == 4 && words[1] == "basic":
		cost, err := bcrypt.Cost([]byte(words[3]))
		switch {
		case err != nil:
			return fmt.Errorf("a password is given by its bcrypt hash: %w", err)
		case cost > maxCost:
			return fmt.Errorf("bcrypt cost %d is above %d", cost, maxCost)
		}
		if _, known := c.users[words[2]]; known {
			return fmt.Errorf("user %q is there twice", words[2])
		}
		c.users[words[2]] = basicUser{words[0], []byte(words[3])}
	default:
		return fmt.Errorf("neither \"NAME bearer HASH\" nor \"NAME basic USER HASH\"")
	}
	return nil
}

// Clients are the names of the client entries that the credentials mention, for
// the configuration to check.
func (c *Credentials) Clients() []string { return c.names }

// has reports whether there is a token or password of that name.
func (c *Credentials) has(name string) bool { return slices.Contains(c.names, name) }

// check returns the client entry for the value of an Authorization field.
func (c *Credentials) check(authorization string) (string, error) {
	scheme, value, _ := strings.Cut(authorization, " ")
	value = strings.Trim(value, " ")
	switch strings.ToLower(scheme) {
	case "bearer":
		// The table is searched by hash: how long that takes says nothing about
		// the token.
		if client, ok := c.tokens[sha256.Sum256([]byte(value))]; ok {
			return client, nil
		}
	case "basic":
		pair, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			break
		}
		if user, password, ok := strings.Cut(string(pair), ":"); ok && len(c.users) > 0 {
			return c.checkPassword(user, password)
		}
	}
	return "", ErrCredentials
}

func (c *Credentials) checkPassword(user, password string) (string, error) {
	mac := hmac.New(sha256.New, c.key)
	mac.Write([]byte(user + ":" + password))
	var id [sha256.Size]byte
	mac.Sum(id[:0])
	if p, ok := c.proven.Get(id); ok && time.Now().Before(p.until) {
		return p.client, nil
	}
	patience := time.NewTimer(passwordPatience)
	defer patience.Stop()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-patience.C:
		return "", ErrAuthenticationBusy
	}
	known, ok := c.users[user]
	hash := known.hash
	if !ok {
		hash = c.decoy // so that unknown users take as long as wrong passwords
	}
	wrong := bcrypt.CompareHashAndPassword(hash, []byte(password)) != nil
	if !ok || wrong {
		return "", ErrCredentials
	}
	c.proven.Add(id, provenPassword{known.client, time.Now().Add(provenLifetime)})
	return known.client, nil
}

func (c *Credentials) challenges() []string {
	var list []string
	if len(c.tokens) > 0 {
		list = append(list, `Bearer realm="coapproxy"`)
	}
	if len(c.users) > 0 {
		list = append(list, `Basic realm="coapproxy", charset="UTF-8"`)
	}
	return list
}
