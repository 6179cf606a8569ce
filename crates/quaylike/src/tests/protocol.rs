//! The distribution API: manifests, tags, blobs, uploads, referrers, in both dialects.

use super::*;

#[tokio::test]
async fn every_media_type_reads_back_byte_for_byte() {
    let bench = Bench::new().await;
    for (tag, shape) in [
        ("a", Shape::Oci),
        ("b", Shape::Docker),
        ("c", Shape::Index),
        ("d", Shape::DockerList),
        ("e", Shape::Nested),
    ] {
        let image = bench.seed("deep/er/repo", tag, shape, tag);
        for reference in [tag.to_owned(), image.digest().to_string()] {
            let path = format!("/v2/deep/er/repo/manifests/{reference}");
            let head = bench.send("HEAD", &path).await;
            let got = bench.send("GET", &path).await;
            for response in [&head, &got] {
                assert_eq!(response.status(), 200);
                assert_eq!(header(response, "content-type"), image.manifest.media_type);
                assert_eq!(
                    header(response, "docker-content-digest"),
                    image.digest().to_string()
                );
                assert_eq!(
                    header(response, "content-length"),
                    image.manifest.bytes.len().to_string()
                );
            }
            assert_eq!(got.bytes().await.unwrap(), image.manifest.bytes);
        }
    }
    assert!(bench.registry.dangling().is_empty());
}

#[tokio::test]
async fn what_is_not_there_has_a_typed_404_and_a_head_has_no_body() {
    let bench = Bench::new().await;
    let missing = bench.send("GET", "/v2/no/where/manifests/x").await;
    assert_eq!(missing.status(), 404);
    assert_eq!(error(missing).await.0, "NAME_UNKNOWN");
    bench.registry.create_repository("r");
    assert_eq!(
        error(bench.send("GET", "/v2/r/manifests/x").await).await.0,
        "MANIFEST_UNKNOWN"
    );
    let head = bench.send("HEAD", "/v2/r/manifests/x").await;
    assert_eq!(head.status(), 404);
    assert!(head.bytes().await.unwrap().is_empty());
    let blob = format!("/v2/r/blobs/{}", Digest::of(b"x"));
    assert_eq!(
        error(bench.send("GET", &blob).await).await.0,
        "BLOB_UNKNOWN"
    );
    assert_eq!(
        error(bench.send("GET", "/v2/R/manifests/x").await).await.0,
        "NAME_INVALID"
    );
    assert_eq!(
        error(bench.send("GET", "/v2/r/manifests/sha256:1").await)
            .await
            .0,
        "DIGEST_INVALID"
    );
    assert_eq!(
        error(bench.send("GET", "/v2/r/manifests/-x").await).await.0,
        "TAG_INVALID"
    );
}

#[tokio::test]
async fn without_the_stored_type_quay_converts_by_tag_and_distribution_refuses() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Index, "x");
    let got = bench
        .ask("GET", "/v2/r/manifests/x")
        .header("accept", OCI_MANIFEST)
        .send()
        .await
        .unwrap();
    assert_eq!(got.status(), 200);
    assert!(header(&got, "content-type").contains("manifest.v1+prettyjws"));
    let told = header(&got, "docker-content-digest").to_owned();
    assert_ne!(told, image.digest().to_string());
    let body = got.bytes().await.unwrap();
    assert_eq!(Digest::of(&body).to_string(), told);
    let by_digest = bench
        .ask("GET", &format!("/v2/r/manifests/{}", image.digest()))
        .send()
        .await
        .unwrap();
    assert_eq!(by_digest.bytes().await.unwrap(), image.manifest.bytes);
    bench
        .registry
        .update(|settings| settings.dialect = Dialect::Distribution);
    let got = bench.ask("GET", "/v2/r/manifests/x").send().await.unwrap();
    assert_eq!(got.status(), 400);
}

#[tokio::test]
async fn missing_content_is_told_in_the_words_of_the_dialect() {
    let bench = Bench::new().await;
    let image = ImageSpec::new(Shape::Oci, "x").build().unwrap();
    let refused = bench.put("r", "x", &image.manifest).await;
    assert_eq!(refused.status(), 400);
    let (code, body) = error(refused).await;
    assert_eq!(code, "MANIFEST_INVALID");
    let first = format!("Unknown blob `{}`", image.manifest.blobs[0]);
    assert_eq!(body["errors"][0]["detail"]["message"], first);
    bench
        .registry
        .update(|settings| settings.dialect = Dialect::Distribution);
    let (code, body) = error(bench.put("r", "x", &image.manifest).await).await;
    assert_eq!(code, "MANIFEST_BLOB_UNKNOWN");
    let told: Vec<_> = body["errors"].as_array().unwrap().iter().collect();
    assert_eq!(told.len(), image.manifest.blobs.len());
    assert_eq!(
        told[1]["detail"]["digest"],
        image.manifest.blobs[1].to_string()
    );
    let list = ImageSpec::new(Shape::Index, "x").build().unwrap();
    assert_eq!(bench.put("r", "x", &list.manifest).await.status(), 400);
    assert!(bench.registry.tags("r").is_empty());
}

#[tokio::test]
async fn manifests_that_are_none_are_refused() {
    let bench = Bench::new().await;
    let put = |media_type: &'static str, body: Vec<u8>| {
        let request = bench
            .ask("PUT", "/v2/r/manifests/x")
            .header("content-type", media_type);
        async { request.body(body).send().await.unwrap() }
    };
    let v1 = "application/vnd.docker.distribution.manifest.v1+json";
    assert_eq!(
        error(put(v1, b"{\"schemaVersion\":1}".to_vec()).await)
            .await
            .0,
        "MANIFEST_INVALID"
    );
    assert_eq!(
        error(put(OCI_MANIFEST, b"{".to_vec()).await).await.0,
        "MANIFEST_INVALID"
    );
    assert_eq!(
        put("text/plain", b"{\"schemaVersion\":2}".to_vec())
            .await
            .status(),
        415
    );
    assert_eq!(
        put(OCI_MANIFEST, vec![b' '; MAX_MANIFEST + 1])
            .await
            .status(),
        413
    );
    let image = bench.seed("r", "x", Shape::Oci, "x");
    let wrong = bench
        .put("r", &Digest::of(b"other").to_string(), &image.manifest)
        .await;
    assert_eq!(error(wrong).await.0, "DIGEST_INVALID");
}

#[tokio::test]
async fn a_put_moves_the_tag_and_collects_what_it_left() {
    let bench = Bench::new().await;
    let old = bench.seed("r", "x", Shape::Index, "old");
    let new = bench.seed("r", "y", Shape::Index, "new");
    let put = bench.put("r", "x", &new.manifest).await;
    assert_eq!(put.status(), 201);
    assert_eq!(
        header(&put, "docker-content-digest"),
        new.digest().to_string()
    );
    assert!(header(&put, "location").starts_with("/v2/r/manifests/"));
    for gone in [&old, &old.children[0]] {
        let path = format!("/v2/r/manifests/{}", gone.digest());
        assert_eq!(bench.send("GET", &path).await.status(), 404);
    }
    let blob = format!("/v2/r/blobs/{}", old.children[0].manifest.blobs[0]);
    assert_eq!(bench.send("HEAD", &blob).await.status(), 404);
    let seen: Vec<_> = bench
        .registry
        .history("r", "x")
        .iter()
        .map(|change| change.digest)
        .collect();
    assert_eq!(seen, [Some(old.digest()), Some(new.digest())]);
    assert!(bench.registry.audit_trail().is_empty());
}

#[tokio::test]
async fn deleting_a_tag_may_delete_its_image_or_be_refused() {
    for (deletion, status, left) in [(Deletion::OfTheImage, 202, 0), (Deletion::Refused, 405, 2)] {
        let bench = Bench::new().await;
        let image = bench.seed("r", "x", Shape::Oci, "x");
        bench.registry.set_tag("r", "y", image.digest()).unwrap();
        bench
            .registry
            .update(|settings| settings.deletion = deletion);
        let answer = bench.send("DELETE", "/v2/r/manifests/x").await;
        assert_eq!(answer.status(), status);
        assert_eq!(bench.registry.tags("r").len(), left);
    }
}

#[tokio::test]
async fn deleting_a_tag_removes_one_and_deleting_a_digest_all_its_tags() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    for tag in ["y", "z"] {
        bench.registry.set_tag("r", tag, image.digest()).unwrap();
    }
    assert_eq!(
        bench.send("DELETE", "/v2/r/manifests/x").await.status(),
        202
    );
    assert_eq!(
        bench.send("DELETE", "/v2/r/manifests/x").await.status(),
        404
    );
    assert_eq!(bench.registry.tags("r").len(), 2);
    let path = format!("/v2/r/manifests/{}", image.digest());
    assert_eq!(bench.send("DELETE", &path).await.status(), 202);
    assert!(bench.registry.tags("r").is_empty());
    assert_eq!(bench.send("GET", &path).await.status(), 404);
}

#[tokio::test]
async fn tags_are_listed_in_pages_with_a_link() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "t000", Shape::Oci, "x");
    for number in 1..150 {
        bench
            .registry
            .set_tag("r", &format!("t{number:03}"), image.digest())
            .unwrap();
    }
    let mut seen: Vec<String> = Vec::new();
    let mut path = "/v2/r/tags/list?n=60".to_owned();
    loop {
        let page = bench.send("GET", &path).await;
        let link = header(&page, "link").to_owned();
        let body: Value = page.json().await.unwrap();
        seen.extend(
            body["tags"]
                .as_array()
                .unwrap()
                .iter()
                .map(|tag| tag.as_str().unwrap().to_owned()),
        );
        match link
            .split_once('<')
            .and_then(|(_, rest)| rest.split_once('>'))
        {
            Some((next, _)) => next.clone_into(&mut path),
            None => break,
        }
    }
    assert_eq!(seen.len(), 150);
    assert!(seen.is_sorted());
    let whole: Value = bench
        .send("GET", "/v2/r/tags/list")
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(whole["tags"].as_array().unwrap().len(), 100);
}

#[tokio::test]
async fn blobs_are_read_whole_and_in_ranges() {
    let bench = Bench::new().await;
    let digest = bench.registry.seed_blob("r", Blob::new("0123456789"));
    let path = format!("/v2/r/blobs/{digest}");
    let head = bench.send("HEAD", &path).await;
    assert_eq!(
        (head.status().as_u16(), header(&head, "content-length")),
        (200, "10")
    );
    for (range, status, content_range, body) in [
        ("bytes=2-4", 206, "bytes 2-4/10", "234"),
        ("bytes=7-", 206, "bytes 7-9/10", "789"),
        ("bytes=-2", 206, "bytes 8-9/10", "89"),
        ("bytes=8-99", 206, "bytes 8-9/10", "89"),
        ("bytes=10-", 416, "bytes */10", ""),
        ("lines=1-2", 200, "", "0123456789"),
    ] {
        let got = bench
            .ask("GET", &path)
            .header("range", range)
            .send()
            .await
            .unwrap();
        assert_eq!(
            (got.status().as_u16(), header(&got, "content-range")),
            (status, content_range)
        );
        assert_eq!(got.text().await.unwrap(), body, "{range}");
    }
}

#[tokio::test]
async fn a_large_synthetic_blob_streams_with_its_digest() {
    let bench = Bench::new().await;
    let image = ImageSpec {
        layers: 1,
        layer_bytes: Some(24 << 20),
        ..ImageSpec::new(Shape::Oci, "big")
    };
    bench.registry.seed_spec("r", "x", &image).unwrap();
    let layer = image.build().unwrap().blobs[0].0;
    let got = bench.send("GET", &format!("/v2/r/blobs/{layer}")).await;
    assert_eq!(Digest::of(&got.bytes().await.unwrap()), layer);
}

#[tokio::test]
async fn a_session_takes_pieces_in_order_and_tells_where_it_is() {
    let bench = Bench::new().await;
    let opened = bench.send("POST", "/v2/r/blobs/uploads/").await;
    assert_eq!(opened.status(), 202);
    let location = header(&opened, "location").to_owned();
    assert!(location.starts_with("/v2/r/blobs/uploads/") && location.contains('?'));
    let patch = |range: &'static str, body: &'static str| {
        let request = bench.ask("PATCH", &location).header("content-range", range);
        async move { request.body(body).send().await.unwrap() }
    };
    let taken = patch("0-4", "01234").await;
    assert_eq!(
        (taken.status().as_u16(), header(&taken, "range")),
        (202, "0-4")
    );
    let refused = patch("3-4", "34").await;
    assert_eq!(
        (refused.status().as_u16(), header(&refused, "range")),
        (416, "0-4")
    );
    let status = bench.send("GET", &location).await;
    assert_eq!(
        (status.status().as_u16(), header(&status, "range")),
        (204, "0-4")
    );
    let bare = location.split_once('?').unwrap().0;
    assert_eq!(
        error(bench.send("GET", bare).await).await.0,
        "BLOB_UPLOAD_UNKNOWN"
    );
    let digest = Digest::of(b"0123456789");
    let close = bench
        .ask("PUT", &format!("{location}&digest={digest}"))
        .body("56789");
    let closed = close.send().await.unwrap();
    assert_eq!(closed.status(), 201);
    assert_eq!(header(&closed, "docker-content-digest"), digest.to_string());
    assert_eq!(bench.registry.blob("r", digest).unwrap().length(), 10);
    assert_eq!(bench.registry.open_uploads(), 0);
}

#[tokio::test]
async fn uploads_are_checked_cancelled_and_taken_at_once() {
    let bench = Bench::new().await;
    let location = header(
        &bench.send("POST", "/v2/r/blobs/uploads/").await,
        "location",
    )
    .to_owned();
    let other = Digest::of(b"other");
    let wrong = bench
        .ask("PUT", &format!("{location}&digest={other}"))
        .body("text")
        .send();
    assert_eq!(error(wrong.await.unwrap()).await.0, "DIGEST_INVALID");
    let location = header(
        &bench.send("POST", "/v2/r/blobs/uploads/").await,
        "location",
    )
    .to_owned();
    assert_eq!(bench.send("DELETE", &location).await.status(), 204);
    assert_eq!(bench.send("DELETE", &location).await.status(), 404);
    let digest = Digest::of(b"whole");
    let path = format!("/v2/r/blobs/uploads/?digest={digest}");
    assert_eq!(
        bench
            .ask("POST", &path)
            .body("whole")
            .send()
            .await
            .unwrap()
            .status(),
        201
    );
    assert!(bench.registry.blob("r", digest).is_some());
    assert_eq!(bench.registry.open_uploads(), 0);
}

#[tokio::test]
async fn a_mount_needs_the_blob_at_its_source() {
    let bench = Bench::new().await;
    let digest = bench.registry.seed_blob("from/here", Blob::new("text"));
    let mount = |query: String| {
        let path = format!("/v2/r/blobs/uploads/?mount={digest}{query}");
        let request = bench.ask("POST", &path);
        async { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(mount("&from=no/where".to_owned()).await, 202);
    assert_eq!(mount(String::new()).await, 202);
    assert!(bench.registry.blob("r", digest).is_none());
    assert_eq!(mount("&from=from/here".to_owned()).await, 201);
    assert!(bench.registry.blob("r", digest).is_some());
}

#[tokio::test]
async fn discarded_blobs_exist_and_cannot_be_read() {
    let bench = Bench::new().await;
    bench
        .registry
        .update(|settings| settings.discard_blobs = true);
    let body = vec![5; 100 << 10];
    let digest = Digest::of(&body);
    let path = format!("/v2/r/blobs/uploads/?digest={digest}");
    assert_eq!(
        bench
            .ask("POST", &path)
            .body(body)
            .send()
            .await
            .unwrap()
            .status(),
        201
    );
    let path = format!("/v2/r/blobs/{digest}");
    let head = bench.send("HEAD", &path).await;
    assert_eq!(
        (head.status().as_u16(), header(&head, "content-length")),
        (200, "102400")
    );
    assert_eq!(bench.send("GET", &path).await.status(), 500);
}

#[tokio::test]
async fn referrers_are_listed_or_unsupported() {
    let bench = Bench::new().await;
    let image = bench.seed("r", "x", Shape::Oci, "x");
    let signature = ImageBuilder::oci("s")
        .referring_to(&image, "application/sig")
        .build()
        .unwrap();
    bench.registry.seed_untagged("r", &signature).unwrap();
    let put = bench
        .put("r", &signature.digest().to_string(), &signature.manifest)
        .await;
    assert_eq!(header(&put, "oci-subject"), image.digest().to_string());
    let path = format!("/v2/r/referrers/{}", image.digest());
    let list: Value = bench.send("GET", &path).await.json().await.unwrap();
    assert_eq!(
        list["manifests"][0]["digest"],
        signature.digest().to_string()
    );
    assert_eq!(list["manifests"][0]["artifactType"], "application/sig");
    let none: Value = bench
        .send("GET", &format!("{path}?artifactType=other"))
        .await
        .json()
        .await
        .unwrap();
    assert!(none["manifests"].as_array().unwrap().is_empty());
    let other = ImageBuilder::artifact("application/other")
        .referring_to(&image, "application/other")
        .build()
        .unwrap();
    bench.registry.seed_untagged("r", &other).unwrap();
    bench
        .registry
        .update(|settings| settings.referrers_page = 1);
    let mut listed = Vec::new();
    let mut next = Some(path.clone());
    while let Some(page) = next {
        let answer = bench.send("GET", &page).await;
        let link = answer
            .headers()
            .get("link")
            .map(|link| link.to_str().unwrap().to_owned());
        next = link.map(|link| link[1..].split_once('>').unwrap().0.to_owned());
        let list: Value = answer.json().await.unwrap();
        assert_eq!(list["manifests"].as_array().unwrap().len(), 1);
        listed.push(list["manifests"][0]["digest"].as_str().unwrap().to_owned());
    }
    let mut both = [signature.digest(), other.digest()];
    both.sort_unstable();
    assert_eq!(listed, both.map(|digest| digest.to_string()));
    bench.registry.update(|settings| settings.referrers = false);
    assert_eq!(bench.send("GET", &path).await.status(), 404);
    let put = bench
        .put("r", &other.digest().to_string(), &other.manifest)
        .await;
    assert_eq!(put.headers().get("oci-subject"), None);
}

#[tokio::test]
async fn the_built_in_images_resolve() {
    let bench = Bench::new().await;
    for (repository, tag, image) in built_in().unwrap() {
        bench.registry.seed_image(repository, tag, &image).unwrap();
        let got = bench
            .send("GET", &format!("/v2/{repository}/manifests/{tag}"))
            .await;
        assert_eq!(got.bytes().await.unwrap(), image.manifest.bytes);
    }
    assert!(bench.registry.dangling().is_empty());
}
