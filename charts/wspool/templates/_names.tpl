{{/* The name of every object: the release's, with "wspool" in it, and without the dots that a Service may not have. */}}
{{- define "wspool.name" -}}
{{- $release := replace "." "-" .Release.Name }}
{{- if contains "wspool" $release }}{{ $release }}{{ else }}{{ $release }}-wspool{{ end }}
{{- end }}

{{/* What a Service or a policy selects the operator's pods by; never changes. */}}
{{- define "wspool.selector" -}}
app.kubernetes.io/name: wspool
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "wspool.labels" -}}
{{ include "wspool.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* An image's reference: `include "wspool.image" (list . "sidecar")`. */}}
{{- define "wspool.image" -}}
{{- $root := first . }}
{{- $image := last . }}
{{- $images := $root.Values.images }}
{{- index $images $image | default (printf "%s/wspool-%s:%s" $images.registry $image ($images.tag | default $root.Chart.AppVersion)) }}
{{- end }}
