# Compilers from Debian's packages, without root and without touching the machine's own apt or its packages. Sourced.
#
# A private apt (own configuration, lists and cache) resolves what a package needs, the .debs are unpacked into a
# directory, and wrappers start the programs through the loader that came with them, so their newer libc is no matter.
# The mirror and the network settings are those of the machine's own apt.
# shellcheck shell=bash

# What a package pulls in that a compiler for WebAssembly never runs: native compilers, their runtimes and headers.
DEBIAN_UNUSED='^(gcc|g\+\+|cpp|binutils|lib(a|l|t|hwa|ub)san|libasan|libgcc-.*-dev|libstdc\+\+-.*-dev|libobjc|libc6-dev|libc-dev-bin|libcrypt-dev|linux-libc-dev|rpcsvc-proto|libgprofng|libctf|libc-gconv|libitm|libgomp|libquadmath|libcc1|libclang1-)'

# Prints the mirror that this machine's apt takes its own release from, or fails.
debian_mirror() {
    local codename id
    have apt-get && have dpkg || return 1
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && printf %s "${VERSION_CODENAME:-sid}")
    # shellcheck source=/dev/null
    id=$(. /etc/os-release && printf %s "$ID")
    [ "$id" = debian ] || return 1
    # shellcheck disable=SC2016  # The dollars are apt's.
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -v release="$codename" '$1 == release && $2 == "main" { print $3; exit }' | grep .
}

# Makes the private apt for a suite and fetches its package list. Leaves APT_CONFIG set for the caller's subshell.
#   debian_apt SUITE MIRROR
debian_apt() {
    local suite=$1 mirror=$2 apt=$CACHE/apt-$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p -- "$apt"/{etc/none.d,etc/preferences.d,etc/trusted.gpg.d,state/lists/partial,cache/archives/partial}
    : >"$apt/state/status"
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite" >"$apt/etc/sources.list"
    {
        printf 'Dir "%s/";\nDir::Etc "etc";\nDir::State "state";\nDir::Cache "cache";\n' "$apt"
        printf 'Dir::State::status "%s/state/status";\nDir::Etc::sourceparts "none.d";\nDir::Etc::parts "none.d";\n' "$apt"
        # apt gives up root for downloads to a user that may not reach a private directory.
        printf 'APT::Sandbox::User "";\nAcquire::Languages "none";\nAcquire::GzipIndexes "true";\n'
        # The machine's proxies, certificates and the like.
        apt-config dump | grep '^Acquire::' | grep -Ev '^Acquire::(IndexTargets|Languages|GzipIndexes)'
    } >"$apt/apt.conf"
    export APT_CONFIG=$apt/apt.conf
    quietly "$apt/update.log" apt-get update -o APT::Update::Error-Mode=any
}

# Unpacks packages and what they need into CACHE/NAME-VERSION, VERSION being the first package's. Prints the directory.
#   debian_unpack SUITE NAME PACKAGE...
debian_unpack() (
    set -euo pipefail
    suite=$1 name=$2
    shift 2
    mirror=$(debian_mirror) || { say "  no: this is not a Debian with apt"; exit 1; }
    debian_apt "$suite" "$mirror" || exit 1
    version=$(apt-cache policy "$1" | awk '$1 == "Candidate:" { sub(/^[0-9]+:/, "", $2); print $2 }')
    case $version in '' | '(none)') say "  no: Debian $suite has no $1"; exit 1 ;; esac
    final=$CACHE/$name-$version
    if [ ! -e "$final" ]; then
        temporary=$(mktemp -d -- "$CACHE/$name.XXXXXX")
        trap 'rm -rf -- "$temporary"' EXIT
        apt-get install --print-uris --yes --no-install-recommends "$@" >"$temporary/uris" 2>"$temporary/log" ||
            { tail -n 5 "$temporary/log" >&2; exit 1; }
        # Lines are 'URI' FILE SIZE HASH; FILE is NAME_VERSION_ARCH.deb.
        mapfile -t needed < <(sed -n "s/^'[^']*' \([^_ ]*\)_.*/\1/p" "$temporary/uris" | grep -Ev "$DEBIAN_UNUSED")
        size=$(grep "^'" "$temporary/uris" | awk '{ print $2, $3 }' | grep -Ev "$DEBIAN_UNUSED" |
            awk '{ sum += $2 } END { printf "%d", sum / 1048576 }')
        say "  fetching ${#needed[@]} packages of Debian $suite ($1 $version), $size MiB"
        mkdir -- "$temporary/debs" "$temporary/root"
        (cd -- "$temporary/debs" && quietly "$temporary/download.log" apt-get download "${needed[@]}") || exit 1
        for deb in "$temporary"/debs/*.deb; do dpkg -x "$deb" "$temporary/root"; done
        # Manuals are not needed, and half of a package is nobody's but its own: keep what runs.
        rm -rf -- "$temporary/root/usr/share/doc" "$temporary/root/usr/share/man" "$temporary/root/usr/share/locale"
        chmod 755 "$temporary/root"
        publish "$temporary/root" "$final"
    fi
    printf '%s\n' "$final"
)

# Writes a wrapper that starts an unpacked program through its own loader, under the wrapper's own path as its name.
#   debian_wrap ROOT PROGRAM NAME [ARGUMENT...]     (PROGRAM relative to ROOT, NAME in ROOT/bin.wasilet)
debian_wrap() {
    local root=$1 program=$2 name=$3 loader libraries wrapper
    shift 3
    loader=$(find "$root" -name 'ld-linux-*.so.*' | head -n 1)
    [ -n "$loader" ] || { say "  no dynamic loader under $root"; return 1; }
    [ -e "$root/$program" ] || { say "  no $program under $root"; return 1; }
    libraries=$(find "$root/usr/lib" "$root/lib" -maxdepth 3 -name '*.so*' ! -path '*/rustlib/*' -printf '%h\n' 2>/dev/null |
        sort -u | paste -sd :)
    wrapper=$root/bin.wasilet/$name
    mkdir -p -- "$root/bin.wasilet"
    {
        printf '#!/bin/sh\nexec %q --library-path %q --argv0 %q %q' "$loader" "$libraries" "$wrapper" "$root/$program"
        [ $# -eq 0 ] || printf ' %q' "$@"
        printf ' "$@"\n'
    } >"$wrapper.new"
    chmod 755 "$wrapper.new"
    mv -- "$wrapper.new" "$wrapper"
}
