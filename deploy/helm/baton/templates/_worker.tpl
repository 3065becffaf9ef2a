{{/* A role's settings, Deployment, headless Service and disruption budget: (dict "root" $ "role" "decode" "own" .Values.decode). */}}
{{- define "baton.worker" -}}
{{- $root := .root }}
{{- $settings := dict
  "model" $root.Values.model
  "served-model-name" (list (include "baton.servedModelName" $root))
  "port" (include "baton.port" "http" | int)
  "control-port" (include "baton.port" "control" | int)
  "kv-port" (include "baton.port" "kv" | int)
}}
{{- if .own.gpus }}{{ $_ := set $settings "device" "cuda" }}{{ end }}
{{- if $root.Values.kvstore.enabled }}{{ $_ := set $settings "kv-store" (include "baton.kvStore" $root) }}{{ end }}
{{- $file := include "baton.settings" (dict "own" $settings "user" .own.settings) }}
{{- $drain_s := get .own.settings "drain-s" | default 20 }}
{{- $lease_s := get .own.settings "lease-s" | default 10 }}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "baton.name" $root }}-{{ .role }}
  labels: {{- include "baton.labels" . | nindent 4 }}
data:
  settings.yaml: |
    {{- $file | trim | nindent 4 }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "baton.name" $root }}-{{ .role }}
  labels: {{- include "baton.labels" . | nindent 4 }}
spec:
  {{- if not .own.autoscaling.enabled }}
  replicas: {{ .own.replicas }}
  {{- end }}
  selector:
    matchLabels: {{- include "baton.selector" . | nindent 6 }}
  strategy:
    rollingUpdate:
      # GPUs are seldom free for one more pod, so one ends, drained, before its successor starts.
      maxSurge: {{ ternary 0 1 (gt (int .own.gpus) 0) }}
      maxUnavailable: {{ ternary 1 0 (gt (int .own.gpus) 0) }}
  template:
    metadata:
      labels: {{- include "baton.labels" . | nindent 8 }}
      annotations:
        checksum/settings: {{ sha256sum $file }}
    spec:
      {{- include "baton.podSecurity" . | nindent 6 }}
      # SIGTERM drains: the worker withdraws, ends what runs within drain-s, hands back the rest, lets leases run out.
      terminationGracePeriodSeconds: {{ add (ceil $drain_s) (ceil $lease_s) 30 }}
      {{- include "baton.placement" . | nindent 6 }}
      containers:
        - name: {{ .role }}
          {{- include "baton.image" . | nindent 10 }}
          command: [baton, {{ .role }}, --config, /etc/baton/settings.yaml]
          env:
            # One address, not every network's: KV is authenticated there without being encrypted.
            - name: BATON_HOST
              valueFrom: {fieldRef: {fieldPath: status.podIP}}
            {{- include "baton.environment" $root | nindent 12 }}
            # Compiled kernels stay beside the models.
            - {name: TRITON_CACHE_DIR, value: /models/triton}
            {{- range $name, $value := .own.env }}
            - {name: {{ $name }}, value: {{ $value | quote }}}
            {{- end }}
          ports:
            - {name: http, containerPort: {{ include "baton.port" "http" }}}
            - {name: control, containerPort: {{ include "baton.port" "control" }}}
            - {name: kv, containerPort: {{ include "baton.port" "kv" }}}
          # Half an hour for weights to be fetched and loaded.
          startupProbe:
            httpGet: {path: /health, port: http}
            periodSeconds: 2
            failureThreshold: 900
          # The worker restarts its engine by itself; this is for the case that it cannot.
          livenessProbe:
            httpGet: {path: /health, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 12
          readinessProbe:
            httpGet: {path: /ready, port: http}
            periodSeconds: 2
            timeoutSeconds: 2
          {{- $limits := .own.resources.limits | default dict }}
          {{- if .own.gpus }}{{ $limits = merge (dict "nvidia.com/gpu" (toString .own.gpus)) $limits }}{{ end }}
          resources: {{- toYaml (merge (dict "limits" $limits) .own.resources) | nindent 12 }}
          {{- include "baton.containerSecurity" . | nindent 10 }}
          volumeMounts:
            {{- include "baton.mounts" . | nindent 12 }}
            - {name: shm, mountPath: /dev/shm}
            {{- if $root.Values.kvstore.enabled }}
            - {name: kvstore, mountPath: /run/kvstore}
            {{- end }}
      volumes:
        {{- include "baton.volumes" (merge (dict "secrets" (list "cache_key" "curve_public_key" "curve_secret_key" "redis_password")) .) | nindent 8 }}
        - name: shm
          emptyDir: {medium: Memory}
        {{- if $root.Values.kvstore.enabled }}
        - name: kvstore
          hostPath: {path: {{ $root.Values.kvstore.hostPath }}, type: Directory}
        {{- end }}
---
# Headless: for Prometheus to find every pod; requests and KV go by the addresses that workers announce in Redis.
apiVersion: v1
kind: Service
metadata:
  name: {{ include "baton.name" $root }}-{{ .role }}
  labels: {{- include "baton.labels" . | nindent 4 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {{- include "baton.selector" . | nindent 4 }}
  ports:
    - {name: http, port: {{ include "baton.port" "http" }}, targetPort: http}
---
{{ include "baton.disruptionBudget" . }}
{{- end }}
