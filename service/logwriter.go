package service

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap/zapcore"
)

// maxLogBytes bounds the lines that wait for a reader of the log.
const maxLogBytes = 1 << 20

// logFlush is how long the end of the program waits for the last lines to be
// written.
const logFlush = time.Second

// logWriter writes lines without ever waiting for their reader: a terminal that
// was stopped, or a journal that hangs, holds up no request and no signal. Lines
// for which there is no room are dropped and counted, and the next line that is
// written says so. It has a goroutine as long as lines are waiting.
type logWriter struct {
	to io.Writer
	// lost returns the line that tells of dropped ones.
	lost func(n uint64) []byte
	// dropped is all of them.
	dropped atomic.Uint64

	mu      sync.Mutex
	waiting []byte // whole lines
	writing int    // bytes of lines that are being written
	untold  uint64
	idle    chan struct{} // closed when there is nothing to write; nil: nothing is being written
}

var _ zapcore.WriteSyncer = (*logWriter)(nil)

// Write takes one whole line.
func (w *logWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiting)+w.writing+len(line) > maxLogBytes {
		w.dropped.Add(1)
		w.untold++
		return len(line), nil
	}
	w.waiting = append(w.waiting, line...)
	if w.idle == nil {
		w.idle = make(chan struct{})
		go w.run(w.idle)
	}
	return len(line), nil
}

// Sync waits until all lines have been written, but not for long.
func (w *logWriter) Sync() error {
	w.mu.Lock()
	idle := w.idle
	w.mu.Unlock()
	if idle == nil {
		return nil
	}
	timer := time.NewTimer(logFlush)
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
	}
	return nil
}

// run writes until there is nothing left.
func (w *logWriter) run(idle chan struct{}) {
	defer close(idle)
	for {
		w.mu.Lock()
		w.writing = 0
		lines, untold := w.waiting, w.untold
		if len(lines) == 0 && untold == 0 {
			w.idle = nil
			w.mu.Unlock()
			return
		}
		w.waiting, w.untold, w.writing = nil, 0, len(lines)
		w.mu.Unlock()
		if untold > 0 { // those before it were there first
			lines = append(lines, w.lost(untold)...)
		}
		_, _ = io.Copy(w.to, bytes.NewReader(lines)) // to whom could an error be told?
	}
}
