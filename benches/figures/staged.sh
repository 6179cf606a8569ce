#!/usr/bin/env bash
# The promotion as the script did it that this program replaces: one step after another, one image after another, a process for
# each. In: a tool (oc, crane, regctl or skopeo) by name and path, and a file of lines `SOURCE FLOAT` in sorted order. Left out are its
# five attempts a step with up to two minutes of sleep between: here nothing fails, and what fails ends the script.
set -euo pipefail
name=$1 tool=$2 list=$3

case $name in
oc)
    copy() { "$tool" image mirror --insecure=true --keep-manifest-list=true "$1" "$2"; }
    exists() { "$tool" image info --insecure=true --filter-by-os=linux/amd64 "$1"; }
    ;;
crane)
    copy() { "$tool" copy "$1" "$2"; }
    exists() { "$tool" digest "$1"; }
    ;;
regctl)
    copy() { "$tool" image copy "$1" "$2"; }
    exists() { "$tool" image digest "$1"; }
    ;;
skopeo)
    copy() { "$tool" copy --quiet --all --preserve-digests --src-tls-verify=false --dest-tls-verify=false "docker://$1" "docker://$2"; }
    exists() { "$tool" inspect --raw --tls-verify=false "docker://$1"; }
    ;;
esac

while read -r source float; do
    copy "$source" "${float}_incoming"
done <"$list"

while read -r _ float; do
    existed=
    if exists "$float" >/dev/null 2>&1; then
        existed=yes
        copy "$float" "${float%:*}:$(date -u +%Y%m%d%H%M%S)_prune_${float##*:}"
        copy "$float" "${float}__pre"
    fi
    copy "${float}_incoming" "$float"
    if [[ $existed ]]; then
        copy "$float" "${float}__post1"
    fi
done <"$list"
