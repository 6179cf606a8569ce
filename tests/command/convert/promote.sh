#!/bin/bash
# The staged promotion, in the form in which the job's step generates it: images under _incoming first, then float by float.
set -o errexit

function mirror {
  for attempt in $(seq 1 "$1"); do
    echo "attempt ${attempt}: $4"
    if oc image mirror --loglevel="$2" --keep-manifest-list --registry-config="$3" --max-per-registry=10 $4; then
      return 0
    fi
    if [ "${attempt}" -eq "$1" ]; then
      exit 1
    fi
    pause=$(($RANDOM % 120))s
    sleep "${pause}"
  done
}

mirror 5 2 /etc/push-secret/.dockerconfigjson registry.build02.ci.openshift.org/ci-op-x/pipeline@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa=quay.io/openshift/ci:ci_tools_latest_incoming
mirror 5 2 /etc/push-secret/.dockerconfigjson registry.build02.ci.openshift.org/ci-op-x/pipeline@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa=quay.io/openshift/ci:ocp_4.21_cli_incoming
mirror 5 2 /etc/push-secret/.dockerconfigjson registry.build02.ci.openshift.org/ci-op-x/pipeline@sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb=quay.io/openshift/ci:ocp_4.21_machine-os_incoming
mirror 5 2 /etc/push-secret/.dockerconfigjson registry.build02.ci.openshift.org/ci-op-x/pipeline@sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc=quay.io/openshift/ci:ocp_4.21_ovn-kubernetes_incoming
mirror 5 2 /etc/push-secret/.dockerconfigjson registry.build02.ci.openshift.org/ci-op-x/pipeline@sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd=quay.io/openshift/ci:ocp_4.21_tests_incoming

_EXISTS=false
if oc image info --registry-config=/etc/push-secret/.dockerconfigjson --filter-by-os=linux/amd64 quay.io/openshift/ci:ci_tools_latest >/dev/null 2>&1; then _EXISTS=true; fi
if [ "${_EXISTS}" = "true" ]; then
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ci_tools_latest=quay.io/openshift/ci:20261124201530_prune_ci_tools_latest
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ci_tools_latest=quay.io/openshift/ci:ci_tools_latest__pre
fi
mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ci_tools_latest_incoming=quay.io/openshift/ci:ci_tools_latest
if [ "${_EXISTS}" = "true" ]; then
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ci_tools_latest=quay.io/openshift/ci:ci_tools_latest__post1
fi
_EXISTS=false
if oc image info --registry-config=/etc/push-secret/.dockerconfigjson --filter-by-os=linux/amd64 quay.io/openshift/ci:ocp_4.21_cli >/dev/null 2>&1; then _EXISTS=true; fi
if [ "${_EXISTS}" = "true" ]; then
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_cli=quay.io/openshift/ci:20261124201530_prune_ocp_4.21_cli
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_cli=quay.io/openshift/ci:ocp_4.21_cli__pre
fi
mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_cli_incoming=quay.io/openshift/ci:ocp_4.21_cli
if [ "${_EXISTS}" = "true" ]; then
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_cli=quay.io/openshift/ci:ocp_4.21_cli__post1
fi
_EXISTS=false
if oc image info --registry-config=/etc/push-secret/.dockerconfigjson --filter-by-os=linux/amd64 quay.io/openshift/ci:ocp_4.21_machine-os >/dev/null 2>&1; then _EXISTS=true; fi
if [ "${_EXISTS}" = "true" ]; then
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_machine-os=quay.io/openshift/ci:20261124201530_prune_ocp_4.21_machine-os
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_machine-os=quay.io/openshift/ci:ocp_4.21_machine-os__pre
fi
mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_machine-os_incoming=quay.io/openshift/ci:ocp_4.21_machine-os
if [ "${_EXISTS}" = "true" ]; then
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_machine-os=quay.io/openshift/ci:ocp_4.21_machine-os__post1
fi
_EXISTS=false
if oc image info --registry-config=/etc/push-secret/.dockerconfigjson --filter-by-os=linux/amd64 quay.io/openshift/ci:ocp_4.21_ovn-kubernetes >/dev/null 2>&1; then _EXISTS=true; fi
if [ "${_EXISTS}" = "true" ]; then
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_ovn-kubernetes=quay.io/openshift/ci:20261124201530_prune_ocp_4.21_ovn-kubernetes
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_ovn-kubernetes=quay.io/openshift/ci:ocp_4.21_ovn-kubernetes__pre
fi
mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_ovn-kubernetes_incoming=quay.io/openshift/ci:ocp_4.21_ovn-kubernetes
if [ "${_EXISTS}" = "true" ]; then
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_ovn-kubernetes=quay.io/openshift/ci:ocp_4.21_ovn-kubernetes__post1
fi
_EXISTS=false
if oc image info --registry-config=/etc/push-secret/.dockerconfigjson --filter-by-os=linux/amd64 quay.io/openshift/ci:ocp_4.21_tests >/dev/null 2>&1; then _EXISTS=true; fi
if [ "${_EXISTS}" = "true" ]; then
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_tests=quay.io/openshift/ci:20261124201530_prune_ocp_4.21_tests
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_tests=quay.io/openshift/ci:ocp_4.21_tests__pre
fi
mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_tests_incoming=quay.io/openshift/ci:ocp_4.21_tests
if [ "${_EXISTS}" = "true" ]; then
  mirror 5 2 /etc/push-secret/.dockerconfigjson quay.io/openshift/ci:ocp_4.21_tests=quay.io/openshift/ci:ocp_4.21_tests__post1
fi

# The ImageStreams, by the digest that was promoted.
for attempt in {1..5}; do
  _digest=$(oc image info --registry-config=/etc/push-secret/.dockerconfigjson --filter-by-os=linux/amd64 quay.io/openshift/ci:ocp_4.21_cli | sed -n '/^Digest:[[:space:]]/s/^Digest:[[:space:]]*//p' | head -n1)
  if [ -n "${_digest}" ] && oc tag --source=docker --reference-policy='source' --reference quay-proxy.ci.openshift.org/openshift/ci@${_digest} ocp/4.21:cli; then
    break
  fi
  pause=$(($RANDOM % 120))s
  sleep "${pause}"
done
