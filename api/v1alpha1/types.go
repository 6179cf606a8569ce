package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// PromotionRequest promotes images to floating tags without ever leaving one dangling.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=preq,categories=ci
// +kubebuilder:selectablefield:JSONPath=.status.phase
type PromotionRequest struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   PromotionRequestSpec   `json:"spec"`
	Status PromotionRequestStatus `json:"status,omitzero"`
}

// PromotionRequestList is a list of requests.
//
// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +kubebuilder:object:root=true
type PromotionRequestList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []PromotionRequest `json:"items"`
}

// PromotionRequestSpec is what is to be promoted, and how. Only suspend, cancel (one way) and ttlSecondsAfterFinished can
// change. What is left out is filled in by the API server.
type PromotionRequestSpec struct {
	// Images are the images, 1 to 256, each with the float it goes to; no float twice.
	// +listType=map
	// +listMapKey=float
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Images []ImageSpec `json:"images"`
	// Latch says whether all floats move together, or each when it is ready.
	// +kubebuilder:default=Together
	Latch Latch `json:"latch,omitempty"`
	// OnFailure says what becomes of floats already moved when an image fails after the commit.
	// +kubebuilder:default=Hold
	OnFailure OnFailure `json:"onFailure,omitempty"`
	// Referrers says whether signatures and attestations are copied as well.
	// +kubebuilder:default=Ignore
	Referrers Referrers `json:"referrers,omitempty"`
	// Mode is Promote, or Plan, which writes nothing.
	// +kubebuilder:default=Promote
	Mode Mode `json:"mode,omitempty"`
	// PullSecret is what sources are read with.
	PullSecret *SecretRef `json:"pullSecret,omitempty"`
	// PushSecret is what the floats' repositories are read and written with.
	PushSecret *SecretRef `json:"pushSecret,omitempty"`
	// Attempts is how often a step of an image may fail over its life, 1 to 20.
	// +kubebuilder:default=5
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=20
	Attempts int32 `json:"attempts,omitempty"`
	// DeadlineSeconds is how long the request may take, 60 to 86400.
	// +kubebuilder:default=7200
	// +kubebuilder:validation:Minimum=60
	// +kubebuilder:validation:Maximum=86400
	DeadlineSeconds int32 `json:"deadlineSeconds,omitempty"`
	// TTLSecondsAfterFinished is how long the finished request is kept.
	// +kubebuilder:default=604800
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=7776000
	TTLSecondsAfterFinished *int32 `json:"ttlSecondsAfterFinished,omitempty"`
	// Suspend holds the request back as long as it is not committed.
	// +kubebuilder:default=false
	Suspend *bool `json:"suspend,omitempty"`
	// Cancel ends the request unless it is committed already. It cannot be taken back.
	// +kubebuilder:default=false
	Cancel *bool `json:"cancel,omitempty"`
	// Gates are what has to be removed before the floats may move. Entries can be removed, never added.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=8
	Gates []Gate `json:"gates,omitempty"`
	// Undo says that floats are taken back: what they are moved off is pinned by tags that end in __broken.
	Undo bool `json:"undo,omitempty"`
	// Incoming says whether the tag that an image was staged on stays once its float is promoted.
	Incoming Incoming `json:"incoming,omitempty"`
	// ImageStreamNamespace is the namespace of the image streams that ImageStreamTag names.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	ImageStreamNamespace string `json:"imageStreamNamespace,omitempty"`
}

// ImageSpec is one image and its float.
type ImageSpec struct {
	// Source is where the image is read: HOST[:PORT]/REPOSITORY@sha256:DIGEST, or :TAG.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Source string `json:"source"`
	// Float is the moving tag it goes to: HOST[:PORT]/REPOSITORY:TAG.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=363
	Float string `json:"float"`
	// Replaces is what the float has to be on: sha256:DIGEST, or ReplacesNone where there must be no such tag yet.
	// +kubebuilder:validation:MaxLength=71
	Replaces string `json:"replaces,omitempty"`
	// ImageStreamTag is a tag of an image stream, STREAM:TAG, that is set to the promoted image once the floats have moved.
	// +kubebuilder:validation:MinLength=3
	// +kubebuilder:validation:MaxLength=128
	ImageStreamTag string `json:"imageStreamTag,omitempty"`
}

// ReplacesNone is what Replaces says of a tag that does not exist yet.
const ReplacesNone = "None"

// Gate is what somebody removes when the floats may move, as far as it is theirs to say.
type Gate struct {
	// Name is the gate's name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
}

// SecretRef names a Secret of type kubernetes.io/dockerconfigjson in the request's namespace.
type SecretRef struct {
	// Name is the Secret's name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// Latch says when the floats of a request move.
//
// +kubebuilder:validation:Enum=Together;Independently
type Latch string

// The ways to latch.
const (
	// LatchTogether: no float before every image is staged and backed up.
	LatchTogether Latch = "Together"
	// LatchIndependently: each as soon as it is staged and backed up.
	LatchIndependently Latch = "Independently"
)

// OnFailure says what becomes of floats already moved when another image fails.
//
// +kubebuilder:validation:Enum=Hold;Rollback
type OnFailure string

// What may become of them.
const (
	// OnFailureHold: they stay.
	OnFailureHold OnFailure = "Hold"
	// OnFailureRollback: they go back to what they were on. It needs LatchTogether.
	OnFailureRollback OnFailure = "Rollback"
)

// Referrers says what is done about signatures, attestations and the like.
//
// +kubebuilder:validation:Enum=Ignore;BestEffort;Require
type Referrers string

// What may be done about them.
const (
	ReferrersIgnore     Referrers = "Ignore"
	ReferrersBestEffort Referrers = "BestEffort"
	ReferrersRequire    Referrers = "Require"
)

// Incoming says what becomes of the tag that an image was staged on.
//
// +kubebuilder:validation:Enum=Keep;Remove
type Incoming string

// What may become of it.
const (
	IncomingKeep   Incoming = "Keep"
	IncomingRemove Incoming = "Remove"
)

// Mode says whether anything is written.
//
// +kubebuilder:validation:Enum=Promote;Plan
type Mode string

// The modes.
const (
	ModePromote Mode = "Promote"
	ModePlan    Mode = "Plan"
)

// Phase is what is true of an image now. A newer controller may know others.
type Phase string

// The phases; the last three and PhasePosted are finished. PhaseReferencing is one of requests alone.
const (
	PhasePending  Phase = "Pending"
	PhaseIncoming Phase = "Incoming"
	PhaseBackedUp Phase = "BackedUp"
	PhaseLatched  Phase = "Latched"
	PhasePosted   Phase = "Posted"
	// PhaseReferencing: the floats are done, and tags of image streams are being set.
	PhaseReferencing Phase = "Referencing"
	PhasePlanned     Phase = "Planned"
	PhaseFailed      Phase = "Failed"
	PhaseCancelled   Phase = "Cancelled"
)

// The types of conditions. One of Complete and Failed is True at every end.
const (
	// ConditionProgressing carries what the request waits for or works at.
	ConditionProgressing = "Progressing"
	// ConditionStaged: the sources may go away.
	ConditionStaged = "Staged"
	// ConditionComplete: every image is Posted or Planned.
	ConditionComplete = "Complete"
	// ConditionFailed: an image is Failed or Cancelled.
	ConditionFailed = "Failed"
	// ConditionReferenced: every image stream tag is set, or left to a newer request.
	ConditionReferenced = "Referenced"
	// ConditionExpiring: an image's labels make its tags expire.
	ConditionExpiring = "Expiring"
)

// PromotionRequestStatus is where a request stands.
type PromotionRequestStatus struct {
	// ObservedGeneration is the generation of the spec that this status speaks of.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Order is the place in the order of requests.
	Order int64 `json:"order,omitempty"`
	// Committed is set once and for all when the floats may move: from here on the request runs to its end.
	Committed bool `json:"committed,omitempty"`
	// Rollback is set when the floats already moved are being taken back.
	Rollback bool `json:"rollback,omitempty"`
	// Phase is the least advanced phase of the unfinished images; Referencing while image stream tags are set; then Failed, Cancelled,
	// Posted or Planned.
	Phase Phase `json:"phase,omitempty"`
	// Progress is finished images of all, as in 2/3.
	Progress string `json:"progress,omitempty"`
	// StartTime is when the request got its floats to itself.
	StartTime *metav1.Time `json:"startTime,omitempty"`
	// DeadlineTime is when it fails unless it is committed by then.
	DeadlineTime *metav1.Time `json:"deadlineTime,omitempty"`
	// CompletionTime is when it ended.
	CompletionTime *metav1.Time `json:"completionTime,omitempty"`
	// Conditions are Progressing, Staged, Complete, Failed, Reconciling and Stalled; Referenced and Expiring where they apply.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Images are the images, in the order of the spec.
	Images []ImageStatus `json:"images,omitempty"`
}

// ImageStatus is where one image stands.
type ImageStatus struct {
	// Float is the float, as in the spec.
	Float string `json:"float"`
	// Phase is what is true of it now.
	Phase Phase `json:"phase"`
	// Reason is why it waits or ended.
	Reason string `json:"reason,omitempty"`
	// Message is the same for a person.
	Message string `json:"message,omitempty"`
	// Source is what the source named when it was resolved.
	Source *SourceStatus `json:"source,omitempty"`
	// Unchanged: the float had the source digest already; nothing was written.
	Unchanged bool `json:"unchanged,omitempty"`
	// FirstPromotion: there was no float before.
	FirstPromotion bool `json:"firstPromotion,omitempty"`
	// Committed is set once and for all when this float may move, with LatchIndependently.
	Committed bool `json:"committed,omitempty"`
	// RollbackTag pins the promoted image until it is known whether its float was taken back.
	RollbackTag string `json:"rollbackTag,omitempty"`
	// Displaced is what the float showed before it moved, newest last.
	Displaced []PinStatus `json:"displaced,omitempty"`
	// WouldDisplace is what the float showed, with ModePlan: no tag pins it.
	WouldDisplace string `json:"wouldDisplace,omitempty"`
	// Rescued is what other tags of the float held alone; its tags end in __rescued.
	Rescued []PinStatus `json:"rescued,omitempty"`
	// PinnedTime is when the pins were last seen in place, while the image is backed up.
	PinnedTime *metav1.Time `json:"pinnedTime,omitempty"`
	// Promoted is the promoted image, by digest: HOST/REPOSITORY@sha256:DIGEST.
	Promoted string `json:"promoted,omitempty"`
	// Reference is what became of its image stream tag.
	Reference *ReferenceStatus `json:"reference,omitempty"`
	// BytesCopied is how many bytes were written to the float's repository.
	BytesCopied int64 `json:"bytesCopied,omitempty"`
	// CopiedNow is how many bytes the copy that runs now has written.
	CopiedNow int64 `json:"copiedNow,omitempty"`
	// CopyTotal is how many bytes that copy writes in all, as far as is known.
	CopyTotal int64 `json:"copyTotal,omitempty"`
	// Attempts is how many launches failed or were cut off.
	Attempts int32 `json:"attempts,omitempty"`
	// NextAttemptTime is before when it is not tried again.
	NextAttemptTime *metav1.Time `json:"nextAttemptTime,omitempty"`
	// LateUntil is until when a tag write that was sent and not answered may land.
	LateUntil *metav1.Time `json:"lateUntil,omitempty"`
}

// SourceStatus is a source, resolved.
type SourceStatus struct {
	Digest    string `json:"digest"`
	MediaType string `json:"mediaType,omitempty"`
}

// ReferenceStatus is what became of a tag of an image stream.
type ReferenceStatus struct {
	// State is Set, Superseded or Failed.
	State string `json:"state"`
	// Replaced is the end of what it referred to before.
	Replaced string `json:"replaced,omitempty"`
}

// PinStatus is a digest and the tag that pins it.
type PinStatus struct {
	Digest   string `json:"digest"`
	PruneTag string `json:"pruneTag"`
}
