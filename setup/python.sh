# shellcheck shell=bash
# Sourced by quickstart and check: uv, and the settings with which it and pip reach the package index.
#
# The interpreter is always the distribution's. What this machine says about its index, proxy and certificates (pip's
# configuration, the environment) holds for uv too.

python=/usr/bin/python3

require_python() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        die "cocoon needs Python 3.11 or newer, and $python is $("$python" --version 2>&1 || true)" \
            "use Debian 12 or newer, or Ubuntu 24.04 or newer"
}

prepare_python_environment() {
    local index pip_settings bundle=/etc/ssl/certs/ca-certificates.crt
    unset VIRTUAL_ENV PYTHONPATH PYTHONHOME
    pip_settings=$(cat /etc/pip.conf ~/.pip/pip.conf ~/.config/pip/pip.conf 2>/dev/null || true)
    # A certificate authority of this site is in the system's store, which neither pip nor uv reads by itself.
    if [ -z "${PIP_CERT:-}" ] && [ -f "$bundle" ] && ! grep -q '^ *cert *=' <<<"$pip_settings"; then
        export PIP_CERT=$bundle
    fi
    export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1} UV_PYTHON=$python UV_NO_PROGRESS=1 PIP_DISABLE_PIP_VERSION_CHECK=1
    export UV_LINK_MODE=${UV_LINK_MODE:-copy}
    index=${PIP_INDEX_URL:-$(sed -n 's/^ *index-url *= *//p' <<<"$pip_settings" | tail -n 1)}
    if [ -n "$index" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
}

ensure_uv() { # ensure_uv DIRECTORY: sets $uv; installs it from the package index into a venv of its own when missing
    if uv=$(command -v uv) && "$uv" --version 2>/dev/null | awk '{ split($2, v, "."); exit !(v[1] > 0 || v[2] >= 7) }'; then
        return 0
    fi
    uv=$1/bin/uv
    if ! "$uv" --version >/dev/null 2>&1; then
        rm -rf "$1"
        "$python" -m venv "$1"
        "$1/bin/pip" install --quiet 'uv>=0.7'
    fi
}
