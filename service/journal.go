package service

import (
	"fmt"
	"io"
	"os"

	"github.com/coreos/go-systemd/v22/journal"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
)

// isJournal reports whether what is written to w goes to systemd's journal, line
// by line.
func isJournal(w io.Writer) bool {
	var is bool
	switch w {
	case os.Stderr:
		is, _ = journal.StderrIsJournalStream()
	case os.Stdout:
		is, _ = journal.StdoutIsJournalStream()
	}
	return is
}

// ErrorPrefix is what a line about an error begins with on w, beside a log: for the
// journal of systemd its priority.
func ErrorPrefix(w io.Writer) string {
	if isJournal(w) {
		return journalPrefix(zapcore.ErrorLevel)
	}
	return ""
}

// journalPrefix tells the journal the priority of a line (sd-daemon(3)), so that
// `journalctl -p warning` finds it.
func journalPrefix(level zapcore.Level) string {
	priority := journal.PriInfo
	switch {
	case level < zapcore.InfoLevel:
		priority = journal.PriDebug
	case level == zapcore.WarnLevel:
		priority = journal.PriWarning
	case level > zapcore.WarnLevel:
		priority = journal.PriErr
	}
	return fmt.Sprintf("<%d>", priority)
}

// journalEncoder writes lines for the journal.
type journalEncoder struct {
	zapcore.Encoder
	buffers buffer.Pool
}

// Clone implements zapcore.Encoder.
func (e journalEncoder) Clone() zapcore.Encoder { return journalEncoder{e.Encoder.Clone(), e.buffers} }

// EncodeEntry implements zapcore.Encoder.
func (e journalEncoder) EncodeEntry(entry zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	line, err := e.Encoder.EncodeEntry(entry, fields)
	if err != nil {
		return nil, err
	}
	defer line.Free()
	out := e.buffers.Get()
	out.AppendString(journalPrefix(entry.Level))
	_, _ = out.Write(line.Bytes())
	return out, nil
}
