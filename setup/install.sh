# shellcheck shell=bash
# Sourced by quickstart: the engine in $prefix, built from this checkout.
#
#   $prefix/<hash of the sources>/venv   one complete installation      $prefix/current   the one in use
#   $prefix/uv, cache, erofs             what it takes to make one
#
# An installation is made aside and becomes the current one by a rename, so an interrupted run leaves the old one working.

# shellcheck disable=SC2154  # source_dir, prefix, launcher: quickstart's; uv, python: setup/python.sh's
sources=(src/cocoon native guests pyproject.toml uv.lock hatch_build.py README.md LICENSE)

list_sources() { # what an installation is made of, one path a line, nothing that was built
    (cd "$source_dir" && find "${sources[@]}" -type f -not -path '*/__pycache__/*' -not -path 'src/cocoon/libexec/*' \
        -not -path 'native/build/*' -not -name '*.o' | LC_ALL=C sort)
}

hash_sources() { # 16 hex digits over the sources and the interpreter
    { list_sources | (cd "$source_dir" && xargs -d '\n' sha256sum) && "$python" --version; } | sha256sum | cut -c 1-16
}

build_installation() { # build_installation DIRECTORY: a venv with the engine and its dependencies as locked
    local tree=$1
    rm -rf "$tree"
    mkdir -p "$tree/source"
    list_sources | tar -c -C "$source_dir" --files-from=- | tar -x --no-same-owner -C "$tree/source"
    export UV_CACHE_DIR=${UV_CACHE_DIR:-$prefix/cache}
    # Not `uv venv` and no pip inside: nothing that runs at every start of the interpreter.
    "$python" -m venv --without-pip "$tree/venv"
    "$uv" export --quiet --project "$tree/source" --frozen --no-dev --no-emit-project --output-file "$tree/requirements.txt"
    "$uv" pip install --python "$tree/venv/bin/python" --require-hashes --requirements "$tree/requirements.txt"
    "$uv" pip install --python "$tree/venv/bin/python" --no-deps "$tree/source"
    "$tree/venv/bin/python" -m compileall -q "$tree/venv/lib"
    rm -rf "$tree/source"
}

write_launcher() { # the command: no site module, no environment of the user's; each costs start-up time
    local packages
    packages=$(cd "$prefix/current/venv/lib" && printf '%s' python*/site-packages)
    cat >"$launcher.new" <<LAUNCHER
#!$prefix/current/venv/bin/python -IS
import sys
sys.path.append("$prefix/current/venv/lib/$packages")
try:
    from cocoon.cli.main import run_process
    status = run_process()
except KeyboardInterrupt:
    status = 130
sys.exit(status)
LAUNCHER
    chmod 0755 "$launcher.new"
    mv -f "$launcher.new" "$launcher"
}

switch_to() { # switch_to TREE: it becomes the current one; older ones go
    local tree=$1 old
    ln -sfn "$(basename "$tree")" "$prefix/current.new"
    mv -fT "$prefix/current.new" "$prefix/current"
    write_launcher
    "$launcher" version
    for old in "$prefix"/????????????????; do
        if [ -d "$old" ] && [ "$old" != "$tree" ]; then rm -rf "$old"; fi
    done
}

libexec_of() { # libexec_of TREE: where the engine looks for its own programs first
    echo "$1"/venv/lib/python*/site-packages/cocoon/libexec
}

ensure_erofs() { # ensure_erofs PREFIX LIBEXEC: the distribution's mkfs.erofs if new enough, else Debian 13's in PREFIX
    # Not grep -q: a program that is cut off while it writes would count as failed.
    if mkfs.erofs --help 2>&1 | grep -- --tar >/dev/null; then
        rm -f "$2"/*.erofs
        return 0
    fi
    "$source_dir/setup/erofs" "$1"
    ln -sfn "$1"/*.erofs "$2/"
}

ensure_engine() {
    local tree
    tree=$prefix/$(hash_sources)
    mkdir -p "$prefix"
    if [ -e "$tree/complete" ] && [ "$(readlink "$prefix/current")" = "$(basename "$tree")" ] && [ -x "$launcher" ]; then
        return 0
    fi
    step "Getting uv from the package index" ensure_uv "$prefix/uv"
    ensure_uv "$prefix/uv" # a step is a subshell: here it only finds it
    step "Building cocoon and its two C programs" build_installation "$tree"
    step "Getting a mkfs.erofs that reads tar files" ensure_erofs "$prefix/erofs" "$(libexec_of "$tree")"
    : >"$tree/complete"
    step "Installing it as $launcher" switch_to "$tree"
}
