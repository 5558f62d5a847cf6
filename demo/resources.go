package demo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
	"unicode"
)

// Content-Formats of the resources (RFC 7252 §12.3).
const (
	textPlain  = 0
	linkFormat = 40
	jsonFormat = 50
)

// resource is one resource of a device.
type resource struct {
	path   []string
	format uint16 // Content-Format of what it gives and takes
	maxAge uint32 // in seconds
	// changes says that it can be observed.
	changes bool
	// attributes describe it in /.well-known/core, which lists those that have
	// any.
	attributes []attribute
	// get returns the body of the response to a GET. The caller owns it.
	get func(now time.Time, query []string) []byte
	// put takes the body of a PUT, which is borrowed; nil where there is none.
	put func(body []byte) error
}

func (d *device) makeResources() []resource {
	info, big := d.info(), d.bigText()
	return []resource{
		{path: []string{"temp"}, format: textPlain, maxAge: uint32(driftEvery / time.Second), get: d.readTemperature, changes: true,
			attributes: []attribute{{"rt", "temperature"}, {"if", "sensor"}, {"obs", ""}}},
		{path: []string{"light"}, format: textPlain, maxAge: 1, get: d.readLight, put: d.switchLight, changes: true,
			attributes: []attribute{{"rt", "light"}, {"if", "actuator"}, {"obs", ""}}},
		{path: []string{"info"}, format: jsonFormat, maxAge: 3600, get: constant(info),
			attributes: []attribute{{"rt", "info"}}},
		{path: []string{"big"}, format: textPlain, maxAge: 3600, get: constant(big),
			attributes: []attribute{{"rt", "text"}, {"sz", fmt.Sprint(len(big))}}},
		{path: []string{".well-known", "core"}, format: linkFormat, maxAge: 3600,
			get: func(_ time.Time, query []string) []byte { return discover(d.resources, query) }},
	}
}

func constant(body []byte) func(time.Time, []string) []byte {
	return func(time.Time, []string) []byte { return bytes.Clone(body) }
}

func (d *device) readTemperature(now time.Time, _ []string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	tenths := d.temperature.at(now.Sub(d.began))
	return fmt.Appendf(nil, "%d.%d °C", tenths/10, tenths%10)
}

func (d *device) readLight(time.Time, []string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.light {
		return []byte("on")
	}
	return []byte("off")
}

func (d *device) switchLight(body []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch string(body) {
	case "on":
		d.light = true
	case "off":
		d.light = false
	default:
		return errors.New("neither on nor off")
	}
	return nil
}

// info describes the device in JSON.
func (d *device) info() []byte {
	room := []rune(strings.ReplaceAll(d.name, "-", " "))
	room[0] = unicode.ToUpper(room[0])
	body, err := json.Marshal(struct {
		Name string `json:"name"`
		Room string `json:"room"`
	}{d.name, string(room)})
	if err != nil {
		panic(err) // two strings
	}
	return body
}

// bigSize is the length of /big in bytes: three blocks of 1024.
const bigSize = 3000

// bigText is a body that does not fit into one message and shows where each
// part of it belongs.
func (d *device) bigText() []byte {
	body := make([]byte, 0, bigSize+64)
	for line := 1; len(body) < bigSize; line++ {
		body = fmt.Appendf(body, "%s, line %d, byte %d\n", d.name, line, len(body))
	}
	return append(body[:bigSize-1], '\n')
}

// drift is the temperature of a room, in tenths of a degree: a random walk in
// steps of driftEvery around where it began. Its owner guards it.
type drift struct {
	random *rand.Rand
	middle int
	tenths int
	step   int64
}

const (
	driftEvery = 5 * time.Second
	driftRange = 15 // tenths of a degree up and down
	// driftSteps bounds the steps that are made up for after a long silence.
	driftSteps = 10_000
)

func newDrift(random *rand.Rand) drift {
	middle := 180 + random.IntN(60)
	return drift{random: random, middle: middle, tenths: middle}
}

// at returns the temperature so long after the beginning.
func (t *drift) at(elapsed time.Duration) int {
	step := int64(elapsed / driftEvery)
	t.step = max(t.step, step-driftSteps)
	for ; t.step < step; t.step++ {
		moved := t.tenths + t.random.IntN(5) - 2
		t.tenths = min(max(moved, t.middle-driftRange), t.middle+driftRange)
	}
	return t.tenths
}
