package service

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

// Whatever the reader does, nobody waits for it; what did not fit is told.
func TestLogWriterNeverBlocks(t *testing.T) {
	r, w := io.Pipe() // which blocks until it is read
	log, level := newLog(config.Log{Level: config.LogInfo, Format: config.LogJSON}, w)
	line := strings.Repeat("x", 1000)
	const n = 2000
	for i := range n {
		log.Info(fmt.Sprint(i, line)) // no two alike: those are sampled
	}
	require.True(t, level.Enabled(0))
	out := level.writer
	dropped := out.dropped.Load()
	require.Greater(t, dropped, uint64(n/3))
	require.Less(t, dropped, uint64(n))

	var text bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(&text, r) })
	require.NoError(t, log.Sync())
	require.NoError(t, w.Close())
	wg.Wait()
	require.Equal(t, n-int(dropped), strings.Count(text.String(), line))
	told := 0 // in one line, or in more
	for _, m := range regexp.MustCompile(`"msg":"log lines were dropped because nobody read them","lines":(\d+)}`).FindAllStringSubmatch(text.String(), -1) {
		lines, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		told += lines
	}
	require.Equal(t, int(dropped), told)
}

// The end of the program waits for the last lines, but not forever.
func TestLogWriterSync(t *testing.T) {
	var text bytes.Buffer
	log, _ := newLog(config.Log{Level: config.LogInfo, Format: config.LogConsole}, &text)
	log.Info("last words")
	require.NoError(t, log.Sync())
	require.Contains(t, text.String(), "INFO last words")

	r, w := io.Pipe()
	log, _ = newLog(config.Log{Level: config.LogInfo}, w)
	log.Info("never read")
	require.NoError(t, log.Sync())
	require.NoError(t, r.Close())
	require.NoError(t, log.Sync())
}
