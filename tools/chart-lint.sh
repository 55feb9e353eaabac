#!/usr/bin/env bash
# Lints the chart strictly and shows that two renderings are the same bytes, and that values do what they say.
set -euo pipefail
cd "$(dirname "$0")/.."
helm() { e2e/cluster/cluster helm "$@"; }
render() { helm template dunlin charts/dunlin --namespace dunlin-system "$@"; }
fail() { echo "charts/dunlin: $1" >&2; exit 1; }
helm lint --strict charts/dunlin
first=$(render)
second=$(render)
[ "$first" = "$second" ] || fail "two renderings differ"
grep -q 'runAsUser: 65532' <<<"$first" || fail "no user"
grep -q 'aggregate-to-edit' <<<"$first" || fail "no rights for users of the cluster"

tenant=$(render --set rbac.scope=namespaced,rbac.nodes=false,crds.enabled=false,leaseFlowSchema.enabled=false)
! grep -E '^kind: (Cluster|CustomResource|FlowSchema)' <<<"$tenant" || fail "a tenant cannot install what is not in a namespace"

mirrored=$(render --set global.imageRegistry=mirror.local:5000/x)
for name in operator worker; do
    grep -q "\"mirror.local:5000/x/dunlin-$name:" <<<"$mirrored" || fail "global.imageRegistry does not reach the image of the $name"
done

platform=$(render --set fixedUser=false --set 'inheritedLabels={team,cost-center}' --set networkPolicy.swarmEgress=false)
! grep -E 'runAsUser|runAsGroup|fsGroup' <<<"$platform" || fail "fixedUser=false leaves a user or group"
grep -A1 DUNLIN_INHERITED_LABELS <<<"$platform" | grep -q '"team,cost-center"' || fail "inheritedLabels do not reach the operator"
for switch in DUNLIN_FIXED_USER DUNLIN_LIMIT_EGRESS; do
    grep -A1 "$switch" <<<"$platform" | grep -q '"false"' || fail "$switch is not false"
done
! render --set 'inheritedLabels={dunlin.dev/role}' >/dev/null 2>&1 || fail "labels of the operator's own must not be inherited"
echo "two renderings are the same ${#first} bytes"
