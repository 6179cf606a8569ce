package main

import (
	"context"
	"errors"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"promotion.ci.openshift.io/api/v1alpha1"
)

// client calls the API server about the requests of one namespace.
type client = gentype.ClientWithList[*v1alpha1.PromotionRequest, *v1alpha1.PromotionRequestList]

func newClient(config *rest.Config, namespace string) (*client, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.GroupVersion = &v1alpha1.SchemeGroupVersion
	config.APIPath = "/apis"
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.UserAgent = "ci-operator-example"
	requests, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, err
	}
	return gentype.NewClientWithList(
		v1alpha1.Resource, requests, runtime.NewParameterCodec(scheme), namespace,
		func() *v1alpha1.PromotionRequest { return &v1alpha1.PromotionRequest{} },
		func() *v1alpha1.PromotionRequestList { return &v1alpha1.PromotionRequestList{} },
	), nil
}

// only lists and watches one request.
func only(client *client, name string) cache.ListerWatcher {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector
			return client.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selector
			return client.Watch(ctx, options)
		},
	}
}

// isDenied says whether the caller is unknown or lacks a right.
func isDenied(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)
}

// mayPass says whether the same call may succeed later: there was no answer, or the server has a problem.
func mayPass(err error) bool {
	var transport *url.Error
	return errors.As(err, &transport) ||
		apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsInternalError(err) || apierrors.IsServiceUnavailable(err)
}
