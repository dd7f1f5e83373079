#!/usr/bin/env bash
# Push IMAGE to REPOSITORY_URI and write imageDetail.json, which names it by its digest. The image of a
# commit that is tagged vX.Y.Z (or RELEASE=X.Y.Z, where there is no .git) gets the tag VARIANT-X.Y.Z, too.
set -euo pipefail
cd "$(dirname "$0")/.."
. image/engine.sh
[ -n "${REPOSITORY_URI:-}" ] || die "REPOSITORY_URI is not set: ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME"
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' container/__init__.py)

digest_of() { # digest_of TAG
    aws ecr describe-images --repository-name "${REPOSITORY_URI#*/}" \
        --image-ids "imageTag=$1" --query 'imageDetails[0].imageDigest' --output text
}

is_pushed() { # is_pushed TAG: any other error than ImageNotFound ends the run, lest a tag moves
    local answer
    answer=$(digest_of "$1" 2>&1) && return 0
    case $answer in
    *ImageNotFound*) return 1 ;;
    *) die "cannot find out whether $1 is pushed: $answer" ;;
    esac
}

release=${RELEASE:-$(git describe --exact-match --match 'v[0-9]*' HEAD 2> /dev/null | sed s/^v// || true)}
if [ -n "$release" ]; then
    [ "$release" = "$version" ] || die "release $release, but container/__init__.py says $version"
    tag=${IMAGE##*:}
    release_tag=${tag%-*}-$version
    if is_pushed "$release_tag"; then
        die "$release_tag is pushed already, and tags of releases never move; release a new version"
    fi
fi
"$ENGINE" push "$IMAGE"
digest=$(digest_of "${IMAGE##*:}")
if [ -n "$release" ]; then
    "$ENGINE" tag "$IMAGE" "$REPOSITORY_URI:$release_tag"
    "$ENGINE" push "$REPOSITORY_URI:$release_tag"
    say "released $REPOSITORY_URI:$release_tag"
fi
printf '{"ImageURI": "%s@%s"}\n' "$REPOSITORY_URI" "$digest" | tee imageDetail.json
