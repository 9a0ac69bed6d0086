# shellcheck shell=bash
# Sourced by quickstart and check: progress lines that say what is going on and how long it took.
# What the commands themselves print goes to $log; the end of it is shown when one fails.

log=${log:-/dev/null}

# A command that fails outside a step must not end the script without a word.
report_error() {
    printf 'Error: %s line %s: status %s\n' "${BASH_SOURCE[1]##*/}" "${BASH_LINENO[0]}" "$1" >&2
}
set -E
trap 'report_error $?' ERR

die() { # die WHAT [WHAT TO DO]
    printf 'Error: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf '  %s\n' "$2" >&2
    exit 1
}

step() { # step TEXT COMMAND...: runs COMMAND in a subshell that ends at its first error, its output into the log
    local text=$1 began=$SECONDS status
    shift
    printf -- '- %-58s' "$text"
    printf '\n### %s: %s\n' "$text" "$*" >>"$log"
    set +e
    trap - ERR
    (
        set -e
        "$@"
    ) >>"$log" 2>&1 </dev/null 9>&- # descriptor 9 is the lock: no VM may inherit it
    status=$?
    trap 'report_error $?' ERR
    set -e
    if [ "$status" -ne 0 ]; then
        printf ' failed\n'
        printf '\nError: %s: status %s; the end of %s:\n' "$text" "$status" "$log" >&2
        tail -n 25 "$log" | sed 's/^/    /' >&2
        exit 1
    fi
    printf ' %4s s\n' "$((SECONDS - began))"
}

require_root() { # require_root COMMAND
    [ "$(id -u)" -eq 0 ] || die "this needs root" "type: sudo $1"
}

require_system() { # one sentence on any system that this cannot work on
    local wanted="cocoon needs Linux on x86-64 or arm64 with apt-get (Debian 12 or newer, Ubuntu 24.04 or newer)"
    [ "$(uname -s)" = Linux ] || die "$wanted; this is $(uname -s)"
    case $(uname -m) in
    x86_64 | aarch64) ;;
    *) die "$wanted; this machine is $(uname -m)" ;;
    esac
    command -v apt-get >/dev/null || die "$wanted; apt-get is not here"
}
