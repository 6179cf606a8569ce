{{- define "promotion-controller.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "promotion-controller.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "promotion-controller.selector" -}}
app.kubernetes.io/name: {{ include "promotion-controller.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Labels of an object: (dict "root" $ "labels" MORE). Those that select and tell cannot be replaced. */}}
{{- define "promotion-controller.labels" -}}
{{- $own := include "promotion-controller.selector" .root | fromYaml -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" -}}
{{- $told := dict
  "app.kubernetes.io/version" .root.Chart.AppVersion
  "app.kubernetes.io/managed-by" .root.Release.Service
  "helm.sh/chart" $chart -}}
{{- merge (dict) $own (.labels | default dict) $told .root.Values.labels | toYaml }}
{{- end }}

{{- /* The head of an object: (dict "root" $ "name" NAME "namespace" NAMESPACE-or-empty "labels" MORE "annotations" MORE). */}}
{{- define "promotion-controller.metadata" -}}
name: {{ .name }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels:
  {{- include "promotion-controller.labels" . | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "promotion-controller.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "promotion-controller.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "promotion-controller.leaseNamespace" -}}
{{ default .Release.Namespace .Values.leaseNamespace }}
{{- end }}

{{- /* The Lease of this release. */}}
{{- define "promotion-controller.lease" -}}
{{ include "promotion-controller.leaseNamespace" . }}/promotion-controller
{{- end }}

{{- /* The Lease that the definition in the cluster names. */}}
{{- define "promotion-controller.namedLease" -}}
{{- $crd := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "promotionrequests.ci.openshift.io" | default dict -}}
{{- get (dig "metadata" "annotations" dict $crd) "ci.openshift.io/lease" }}
{{- end }}

{{- define "promotion-controller.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{- /* What the flags of the controller are. */}}
{{- define "promotion-controller.arguments" -}}
{{- $arguments := list
  (printf "--listen=%s:%d" .Values.metrics.address (int .Values.metrics.port))
  (printf "--listen-probes=%s:%d" .Values.metrics.address (int .Values.metrics.probePort))
  (printf "--log-format=%s" .Values.logFormat)
  (printf "--lease-namespace=%s" (include "promotion-controller.leaseNamespace" .))
  (printf "--registry-qps=%s" (ternary .Values.qps (toString (int64 .Values.qps)) (kindIs "string" .Values.qps)))
  (printf "--registry-qps-max=%d" (int .Values.qpsMax))
  (printf "--registry-concurrency=%d" (int .Values.concurrency))
  (printf "--settle-seconds=%d" (int .Values.settleSeconds))
  (printf "--late-seconds=%d" (int .Values.lateSeconds))
  (printf "--status-interval=%d" (int .Values.statusInterval))
  (printf "--sweep-interval=%d" (int .Values.sweepInterval))
  (printf "--max-active-requests-per-namespace=%d" (int .Values.maxActiveRequestsPerNamespace)) -}}
{{- range .Values.registries }}
{{- $arguments = append $arguments (printf "--allow-registry=%s" .) }}
{{- end }}
{{- range .Values.plainHttp }}
{{- $arguments = append $arguments (printf "--plain-http=%s" .) }}
{{- end }}
{{- range $n, $ca := .Values.registryCa }}
{{- $arguments = append $arguments (printf "--registry-ca=%s=/etc/promotion-controller/ca-%d/ca.crt" $ca.host $n) }}
{{- end }}
{{- range .Values.clusterRanges }}
{{- $arguments = append $arguments (printf "--cluster-range=%s" .) }}
{{- end }}
{{- if .Values.policy.rules }}
{{- $arguments = append $arguments "--policy=/etc/promotion-controller/policy/policy.yaml" }}
{{- end }}
{{- if .Values.registryConfig }}
{{- $arguments = append $arguments "--registry-config=/etc/promotion-controller/registry-config/config.json" }}
{{- end }}
{{- range .Values.imageStreams.namespaces }}
{{- $arguments = append $arguments (printf "--image-stream-namespace=%s" .) }}
{{- end }}
{{- range .Values.imageStreams.pullHosts }}
{{- $arguments = append $arguments (printf "--pull-host=%s=%s" .repository .host) }}
{{- end }}
{{- if .Values.imageStreams.create }}
{{- $arguments = append $arguments "--create-image-streams" }}
{{- end }}
{{- toYaml $arguments }}
{{- end }}

{{- /* The ports of registries: those that are listed, and those that their names and the proxies' carry. */}}
{{- define "promotion-controller.registryPorts" -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.registryPorts }}
{{- $ports = append $ports (int .) }}
{{- end }}
{{- range concat .Values.registries .Values.plainHttp (list .Values.proxy.http .Values.proxy.https .Values.proxy.all) }}
{{- with regexFind ":[0-9]+/?$" . }}
{{- $ports = append $ports (trimAll ":/" . | int) }}
{{- end }}
{{- end }}
{{- range .Values.plainHttp }}
{{- if not (regexMatch ":[0-9]+$" .) }}
{{- $ports = append $ports 80 }}
{{- end }}
{{- end }}
{{- $ports | uniq | toJson }}
{{- end }}

{{- /* Whether the definition in the cluster is of a later version than the chart's: then it stays as it is. */}}
{{- define "promotion-controller.crdIsLater" -}}
{{- $ours := .Files.Get "files/promotionrequests.yaml" | fromYaml -}}
{{- $theirs := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" $ours.metadata.name | default dict -}}
{{- $label := "app.kubernetes.io/version" -}}
{{- with dig "metadata" "labels" $label "" $theirs -}}
{{- if semverCompare (printf "> %s" (index $ours.metadata.labels $label)) . -}}
{{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "promotion-controller.subject" -}}
- kind: ServiceAccount
  name: {{ include "promotion-controller.serviceAccount" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}
