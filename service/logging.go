package service

import (
	"bytes"
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"

	"coapproxy/config"
)

// logControl changes the level of a logger and knows its writer.
type logControl struct {
	zap.AtomicLevel
	writer *logWriter
}

// NewLog makes the logger the configuration asks for. It never waits for who reads
// w: lines that find no room are dropped, and a later one says how many.
func NewLog(c config.Log, w io.Writer) *zap.Logger {
	log, _ := newLog(c, w)
	return log
}

// newLog makes the logger the configuration asks for, and what changes it.
func newLog(c config.Log, w io.Writer) (*zap.Logger, logControl) {
	level := logControl{zap.NewAtomicLevelAt(levelOf(c)), &logWriter{to: w}}
	e := zap.NewProductionEncoderConfig()
	e.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	e.EncodeDuration = zapcore.StringDurationEncoder
	journal := isJournal(w)
	encoder := zapcore.NewJSONEncoder(e)
	if c.Format == config.LogConsole {
		if journal {
			e.TimeKey = zapcore.OmitKey // it has its own
		}
		e.EncodeTime = zapcore.TimeEncoderOfLayout("2006-01-02T15:04:05.000Z07:00")
		e.EncodeLevel = zapcore.CapitalLevelEncoder
		e.ConsoleSeparator = " "
		encoder = zapcore.NewConsoleEncoder(e)
	}
	if journal {
		encoder = journalEncoder{encoder, buffer.NewPool()}
	}
	level.writer.lost = func(n uint64) []byte {
		buf, err := encoder.Clone().EncodeEntry(zapcore.Entry{Level: zapcore.WarnLevel, Time: time.Now(),
			Message: "log lines were dropped because nobody read them"}, []zapcore.Field{zap.Uint64("lines", n)})
		if err != nil {
			return nil
		}
		defer buf.Free()
		return bytes.Clone(buf.Bytes())
	}
	core := zapcore.NewCore(encoder, level.writer, level)
	return zap.New(zapcore.NewSamplerWithOptions(core, time.Second, sampleFirst, sampleThen)), level
}

// Of the same message the log has so many lines per second, and then one of so
// many: strangers must not be able to fill a disk, and counters count the rest.
const (
	sampleFirst = 500
	sampleThen  = 1000
)

func levelOf(c config.Log) zapcore.Level {
	level, err := zapcore.ParseLevel(string(c.Level))
	if err != nil {
		return zapcore.InfoLevel
	}
	return level
}
