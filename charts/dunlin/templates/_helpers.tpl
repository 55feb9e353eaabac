{{/* Name of the operator's objects: "dunlin-operator" for a release called dunlin, else "<release>-dunlin-operator". */}}
{{- define "dunlin.operator" -}}
{{- $base := ternary .Release.Name (printf "%s-dunlin" .Release.Name) (contains "dunlin" .Release.Name) -}}
{{- printf "%s-operator" ($base | trunc 50 | trimSuffix "-") -}}
{{- end -}}

{{/* Cluster-scoped objects carry the namespace, so that two namespaced releases do not share them. */}}
{{- define "dunlin.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "dunlin.operator" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "dunlin.selector" -}}
app.kubernetes.io/name: dunlin
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "dunlin.labels" -}}
{{ include "dunlin.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: dunlin
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* (dict "image" .Values.image.x "root" $). global.imageRegistry takes the place of the repository's own registry, if it names one. */}}
{{- define "dunlin.image" -}}
{{- $repository := .image.repository -}}
{{- with (.root.Values.global).imageRegistry -}}
{{- $parts := splitList "/" $repository -}}
{{- $first := first $parts -}}
{{- if and (gt (len $parts) 1) (or (contains "." $first) (contains ":" $first) (eq $first "localhost")) -}}
{{- $parts = rest $parts -}}
{{- end -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (join "/" $parts) -}}
{{- end -}}
{{- printf "%s:%s" $repository (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}

{{/* What the operator may do to the objects of swarms. */}}
{{- define "dunlin.rules" -}}
- apiGroups: [dunlin.dev]
  resources: [inferenceswarms, trainingswarms]
  verbs: [get, list, watch]
- apiGroups: [dunlin.dev]
  resources: [inferenceswarms/status, trainingswarms/status]
  verbs: [get, patch]
# Only for blockOwnerDeletion on children, where the cluster checks it.
- apiGroups: [dunlin.dev]
  resources: [inferenceswarms/finalizers, trainingswarms/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
# Certificates of swarms. No delete: owner references do that. Names and versions are watched, so that one that is deleted comes back.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, {{ if .Values.rbac.secrets }}list, watch, {{ end }}create, patch]
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, list, watch, create, patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
