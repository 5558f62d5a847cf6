package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
)

// runCompletion is the subcommand completion.
func runCompletion(ctx context.Context, io stdio, args []string) int {
	flags := newFlags(io, "completion", "bash|zsh|fish", "Prints a script that completes coapproxy's commands and flags, for one of these shells:\n"+
		"  bash   source <(coapproxy completion bash)\n"+
		"  zsh    coapproxy completion zsh > \"${fpath[1]}/_coapproxy\"\n"+
		"  fish   coapproxy completion fish > ~/.config/fish/completions/coapproxy.fish")
	if code, done := parse(flags, args, 1, 1); done {
		return code
	}
	writers := map[string]func(*bytes.Buffer, []page){"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
	write := writers[flags.Arg(0)]
	if write == nil {
		fmt.Fprintf(io.err, "coapproxy completion: no shell %q here; bash, zsh or fish\n", flags.Arg(0))
		return exitUsage
	}
	var b bytes.Buffer
	write(&b, pages(ctx))
	if _, err := b.WriteTo(io.out); err != nil {
		fmt.Fprintln(io.err, "coapproxy completion:", err)
		return exitFailed
	}
	return exitOK
}

func bashCompletion(b *bytes.Buffer, pages []page) {
	names := make([]string, 0, len(pages))
	for _, p := range pages {
		names = append(names, p.name)
	}
	fmt.Fprintf(b, `# bash completion for coapproxy
_coapproxy() {
  local cur=${COMP_WORDS[COMP_CWORD]} words=
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '%s help' -- "$cur"))
    return
  fi
  case ${COMP_WORDS[1]} in
`, strings.Join(names, " "))
	for _, p := range pages {
		words := slices.Clone(p.words)
		for _, f := range p.flags {
			words = append(words, "--"+f.name)
		}
		fmt.Fprintf(b, "  %s) words='%s' ;;\n", p.name, strings.Join(append(words, "--help"), " "))
	}
	fmt.Fprint(b, `  esac
  case $cur in
  -*) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
  *) COMPREPLY=($(compgen -W "${words//--*([a-z0-9-])/}" -- "$cur") $(compgen -f -- "$cur")) ;;
  esac
}
shopt -s extglob
complete -o filenames -F _coapproxy coapproxy
`)
}

// quoted is s in single quotes, for the shells.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func zshCompletion(b *bytes.Buffer, pages []page) {
	fmt.Fprint(b, "#compdef coapproxy\n_coapproxy() {\n  local -a commands\n  commands=(\n")
	for _, p := range pages {
		fmt.Fprintf(b, "    %s\n", quoted(p.name+":"+strings.ReplaceAll(p.summary, ":", `\:`)))
	}
	fmt.Fprint(b, "  )\n  if (( CURRENT == 2 )); then\n    _describe command commands\n    return\n  fi\n  local command=$words[2]\n  shift words; (( CURRENT-- ))\n  case $command in\n")
	plain := strings.NewReplacer("[", "(", "]", ")", ":", " -")
	for _, p := range pages {
		fmt.Fprintf(b, "  %s) _arguments '--help[tell more]'", p.name)
		for _, f := range p.flags {
			value := ""
			if f.value != "" {
				value = ":" + plain.Replace(f.value) + ":_files"
			}
			fmt.Fprintf(b, " \\\n      %s", quoted("*--"+f.name+"["+plain.Replace(f.help)+"]"+value))
		}
		if words := p.words; words != nil {
			fmt.Fprintf(b, " \\\n      %s", quoted("1:what:("+strings.Join(words, " ")+")"))
		}
		fmt.Fprint(b, " \\\n      '*:file:_files' ;;\n")
	}
	fmt.Fprint(b, "  esac\n}\n_coapproxy \"$@\"\n")
}

func fishCompletion(b *bytes.Buffer, pages []page) {
	fmt.Fprint(b, "# fish completion for coapproxy\n")
	for _, p := range pages {
		fmt.Fprintf(b, "complete -c coapproxy -f -n __fish_use_subcommand -a %s -d %s\n", p.name, quoted(p.summary))
	}
	for _, p := range pages {
		seen := quoted("__fish_seen_subcommand_from " + p.name)
		for _, w := range p.words {
			fmt.Fprintf(b, "complete -c coapproxy -n %s -a %s\n", seen, w)
		}
		for _, f := range p.flags {
			required := ""
			if f.value != "" {
				required = " -r"
			}
			fmt.Fprintf(b, "complete -c coapproxy -n %s -l %s%s -d %s\n", seen, f.name, required, quoted(f.help))
		}
	}
}
