package service

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"go.uber.org/zap"
)

const (
	// targetsPause is how long what has been announced may be missing in its file.
	targetsPause = time.Second
	// targetsInterval is how old the file gets, for the times of use in it.
	targetsInterval = 10 * time.Minute
)

// keepTargets takes over what the last run has announced as servers, and keeps it in
// the file from now on (GP-102); empty: nowhere. A file that cannot be used is moved
// aside, as that of stored responses is, and never keeps the proxy from starting.
func (p *Proxy) keepTargets(file string, log *zap.Logger) {
	if file == "" {
		return
	}
	data, err := os.ReadFile(file)
	if err == nil {
		var n int
		if n, err = p.mappings.Restore(data, time.Now()); err == nil {
			log.Info("announced servers read", zap.String("file", file), zap.Int("servers", n))
		} else {
			err = errors.Join(err, os.Rename(file, file+".damaged"))
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("announced servers of before are forgotten", zap.String("file", file), zap.Error(err))
	}
	save := func() {
		data, err := json.Marshal(p.mappings)
		if err == nil {
			err = renameio.WriteFile(file, data, 0o600, renameio.WithTempDir(filepath.Dir(file)))
		}
		if err != nil {
			log.Warn("announced servers not kept", zap.String("file", file), zap.Error(err))
		}
	}
	save() // which tells at once whether it can be written
	p.wg.Go(func() {
		defer save()
		ticker := time.NewTicker(targetsInterval)
		defer ticker.Stop()
		for {
			select {
			case <-p.ctx.Done():
				return
			case <-ticker.C:
			case <-p.mappings.Changed():
				select { // there is more to come
				case <-p.ctx.Done():
					return
				case <-time.After(targetsPause):
				}
			}
			save()
		}
	})
}
