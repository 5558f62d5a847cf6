package main

import (
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"coapproxy/config"
)

// newLog makes the logger the configuration asks for. Its level can be changed.
func newLog(c config.Log, w io.Writer) (*zap.Logger, zap.AtomicLevel) {
	level := zap.NewAtomicLevelAt(levelOf(c))
	e := zap.NewProductionEncoderConfig()
	e.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	e.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(e)
	if c.Format == config.LogConsole {
		e.EncodeTime = zapcore.TimeEncoderOfLayout("2006-01-02T15:04:05.000Z07:00")
		e.EncodeLevel = zapcore.CapitalLevelEncoder
		e.ConsoleSeparator = " "
		encoder = zapcore.NewConsoleEncoder(e)
	}
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level)
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
