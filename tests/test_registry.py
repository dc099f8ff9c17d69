"""Against a real registry: push, stop it, run the script, start it, pull what has to be there.

`check` is the heart: after a deletion every survivor is pulled whole, the rest answers 404, and the
disk holds the survivors' blobs and not one more. Then the registry's own collector runs over what
the script left, and every survivor is pulled once more.
"""
import json
import os
import shutil
import subprocess
import sys

import pytest

import faults
from registry import (
    Layout, PullError, Registry, descriptor, image_manifest, index_manifest, layer_of,
)
from tree import (
    CACHE_CONFIG, DAY, DOCKER_LIST, FOREIGN_LAYER, OCI_ARTIFACT, OCI_IMAGE, OCI_INDEX, OCI_LAYER,
    SCHEMA2, digest_of, encode, set_age, snapshot, write,
)

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                      'delete_docker_registry_image.py')


@pytest.fixture
def registry(tmp_path):
    with Registry(tmp_path / 'registry') as running:
        yield running


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / 'layout')


def run(registry, *arguments, status=0, said='', **environment):
    """Run the script on the stopped registry's folder; return its standard output and error."""
    assert registry.host is None, 'the registry is running'
    clean = {name: value for name, value in os.environ.items() if not name.startswith('REGISTRY_')}
    done = subprocess.run([sys.executable, SCRIPT, '-d', registry.root] + list(arguments),
                          input=said.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=dict(clean, **environment))
    assert done.returncode == status or status is None, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


def script(registry, *arguments, status=0):
    """Run the script; return what it says."""
    out, said = run(registry, *arguments, status=status)
    assert out == ''
    return said


def delete(registry, *arguments, status=0):
    """Stop the registry, run the script, start the registry again."""
    registry.stop()
    said = script(registry, *arguments, status=status)
    registry.start()
    return said


def split(reference):
    """`app:1.0` or `app@sha256:...` as repository and the rest."""
    repo, _, digest = reference.partition('@')
    return (repo, digest) if digest else tuple(reference.rsplit(':', 1))


def pull(registry, *references, absent=()):
    """Pull images whole; return {reference: digests of everything in it}."""
    return {reference: registry.pull(*split(reference), absent=absent) for reference in references}


def check(registry, alive, gone=(), absent=(), rest=(), collect=True):
    """Assert that exactly the images `alive` (what `pull` returned before) are there.

    `gone` are references that have to answer 404; `rest` are blobs that stay besides.
    """
    repositories = {}
    for repo, reference in map(split, alive):
        tags = repositories.setdefault(repo, set())
        if not reference.startswith('sha256:'):
            tags.add(reference)

    def check_pulls():
        assert registry.catalog() == sorted(repositories)
        for repo, tags in repositories.items():
            if tags:  # of a repository that was never tagged it knows no list
                assert registry.tags(repo) == sorted(tags)
        assert pull(registry, *alive, absent=absent) == alive

    check_pulls()
    for reference in gone:
        assert registry.missing(*split(reference)), reference
    assert stored_blobs(registry) == set(rest).union(*alive.values())
    if collect:
        registry.stop()
        registry.garbage_collect()
        registry.start()
        check_pulls()


def stored_blobs(registry):
    """The digest of every blob on disk. An emptied folder that stayed behind is an error."""
    found = set()
    for folder, _, files in os.walk(os.path.join(registry.v2, 'blobs')):
        if len(os.path.basename(folder)) == 64:
            assert files == ['data'], folder
            found.add('sha256:' + os.path.basename(folder))
    return found


def tag_again(registry, repo, reference, tag):
    """Give another tag to an image, as clients do: put the same manifest under the tag."""
    manifest = registry.request('/v2/%s/manifests/%s' % (repo, reference),
                                headers={'Accept': OCI_IMAGE})[2]
    return registry.push_manifest(repo, manifest, tag)


# --- tags, and what they share --------------------------------------------------------------------

def test_a_tag_goes_and_the_layers_that_others_use_stay(registry, layout):
    one = layout.tag('one', layout.image('base', 'common', 'one'))
    registry.skopeo_copy(one, 'team/app:1.0')
    registry.skopeo_copy(layout.tag('two', layout.image('base', 'two')), 'team/app:2.0')
    # The other repository takes a layer over by a link, as clients do, instead of sending it.
    registry.mount_blob('other', digest_of(layer_of('common')), 'team/app')
    registry.push_image('other', '1.0', [b'its own'])
    registry.push_image('other', '2.0', [layer_of('common')])
    before = pull(registry, 'team/app:1.0')
    alive = pull(registry, 'team/app:2.0', 'other:1.0', 'other:2.0')

    said = delete(registry, '-i', 'team/app:1.0')

    assert 'Deleted tag team/app:1.0' in said
    assert 'Deleted 1 tag, 1 manifest, 3 blobs of %s: ' % registry.v2 in said
    check(registry, alive, gone=['team/app:1.0'])
    registry.skopeo_copy(one, 'team/app:1.0')
    assert pull(registry, 'team/app:1.0') == before


def test_the_same_image_under_two_tags_stays_until_the_last_one_goes(registry, layout):
    image = layout.tag('image', layout.image('base'))
    registry.skopeo_copy(image, 'app:1.0')
    registry.skopeo_copy(image, 'app:latest')
    registry.push_image('app', 'other', [b'other'])
    alive = pull(registry, 'app:latest', 'app:other')

    assert ': 0 bytes freed' in delete(registry, '-i', 'app:1.0')
    check(registry, alive, gone=['app:1.0'])

    delete(registry, '-i', 'app:latest')
    check(registry, {'app:other': alive['app:other']}, gone=['app:latest'])


def test_the_same_image_in_two_repositories_is_deleted_from_one(registry, layout):
    image = layout.tag('image', layout.image('base'))
    registry.skopeo_copy(image, 'a:1.0')
    registry.skopeo_copy(image, 'b:1.0')
    alive = pull(registry, 'b:1.0')

    delete(registry, '-i', 'a:1.0')

    check(registry, alive, gone=['a:1.0'])
    registry.skopeo_copy(image, 'a:1.0')
    assert pull(registry, 'a:1.0')['a:1.0'] == alive['b:1.0']


def test_the_history_of_an_overwritten_tag_goes_with_it(registry):
    for number in range(3):
        registry.push_image('app', 'nightly', [b'base', b'nightly %d' % number])
    former = registry.push_image('app', 'stable', [b'base', b'former'])
    registry.push_image('app', 'stable', [b'base', b'stable'])
    # What only the history of another tag holds is untagged, and not asked for.
    alive = pull(registry, 'app:stable', 'app@' + former)

    assert 'Deleted 1 tag, 3 manifests, ' in delete(registry, '-i', 'app:nightly')

    check(registry, alive, gone=['app:nightly'])
    registry.push_image('app', 'nightly', [b'base', b'nightly 2'])
    pull(registry, 'app:nightly')


def test_an_image_of_the_history_that_another_tag_names_stays(registry):
    first = registry.push_image('app', '1.0', [b'first'])
    tag_again(registry, 'app', first, 'kept')
    registry.push_image('app', '1.0', [b'second'])
    alive = pull(registry, 'app:kept')

    delete(registry, '-i', 'app:1.0')

    check(registry, alive, gone=['app:1.0'])


def test_several_images_in_one_run(registry):
    registry.push_image('a', '1.0', [b'shared', b'a1'])
    registry.push_image('a', '2.0', [b'shared', b'a2'])
    registry.push_image('b/c', '1.0', [b'shared', b'c1'])
    registry.push_image('d', '1.0', [b'shared', b'd1'])
    doomed = registry.push_image('d', '2.0', [b'd2'])
    alive = pull(registry, 'a:2.0', 'd:1.0')

    delete(registry, '-i', 'a:1.0', '-i', 'b/c', '-i', 'd@' + doomed)

    check(registry, alive, gone=['a:1.0', 'b/c:1.0', 'd:2.0', 'd@' + doomed])


def test_patterns(registry):
    for repo, tag in [('app', '1.0'), ('app', '1.1'), ('app', '2.0'), ('team/app', '1.0'),
                      ('team/deep/app', '1.0'), ('teams', '1.0')]:
        registry.push_image(repo, tag, [b'base', (repo + tag).encode()])
    alive = pull(registry, 'app:2.0', 'teams:1.0')

    delete(registry, '-i', 'app:1.*', '-i', 'team/*')

    check(registry, alive, gone=['app:1.0', 'app:1.1', 'team/app:1.0', 'team/deep/app:1.0'])


def test_a_reference_pasted_from_the_client(registry):
    registry.push_image('team/app', '1.0', [b'one'])
    registry.push_image('team/app', '2.0', [b'two'])
    host = registry.host
    alive = pull(registry, 'team/app:2.0')

    delete(registry, '-i', host + '/team/app:1.0')

    check(registry, alive, gone=['team/app:1.0'])


def test_a_dry_run_says_the_same_and_changes_nothing(registry):
    registry.push_image('app', '1.0', [b'base', b'old'])
    registry.push_image('app', '1.0', [b'base', b'one'])
    registry.push_image('app', '2.0', [b'base', b'two'])
    registry.begin_upload('app')
    registry.push_image('b', '1.0', [b'base'])
    alive = pull(registry, 'app:2.0')
    registry.stop()
    request = ['-v', '-i', 'app:1.0', '-i', 'b', '-p']

    before = snapshot(registry.root)
    dry = script(registry, '-n', *request)
    assert snapshot(registry.root) == before
    real = script(registry, *request)

    def happenings(said):
        """The lines about what happens, without their times."""
        return [line.split(']', 1)[1].replace('Would delete', 'Deleted')
                .replace('would be freed', 'freed')
                for line in said.splitlines() if 'delete' in line.lower()]

    assert 'Would delete' in dry and 'Would delete' not in real
    assert happenings(dry) == happenings(real)
    registry.start()
    check(registry, alive, gone=['app:1.0', 'b:1.0'])


# --- whole repositories ---------------------------------------------------------------------------

def test_a_repository_goes_and_those_below_and_above_it_stay(registry):
    for repo in ['a', 'a/b', 'a/b/c', 'ab']:
        registry.push_image(repo, '1.0', [b'base', repo.encode()])
    alive = pull(registry, 'a:1.0', 'a/b/c:1.0', 'ab:1.0')
    delete(registry, '-i', 'a/b')
    check(registry, alive, gone=['a/b:1.0'])

    del alive['a:1.0']
    assert 'Deleted repository a' in delete(registry, '-i', 'a')
    check(registry, alive, gone=['a:1.0'])

    registry.push_image('a', '1.0', [b'base', b'a'])
    registry.push_image('a/b', '1.0', [b'base', b'a/b'])
    alive.update(pull(registry, 'a:1.0', 'a/b:1.0'))
    check(registry, alive)


def test_the_last_repository_goes_and_the_registry_lives_on(registry, layout):
    image = layout.tag('image', layout.image('base', 'top'))
    registry.skopeo_copy(image, 'app:1.0')
    registry.push_image('app', None, [b'untagged'])
    before = pull(registry, 'app:1.0')

    delete(registry, '-i', 'app', '-p')

    check(registry, {}, gone=['app:1.0'])
    registry.skopeo_copy(image, 'app:1.0')
    assert pull(registry, 'app:1.0') == before


def test_a_repository_that_loses_its_last_tag_leaves_the_catalog(registry):
    registry.push_image('app', '1.0', [b'base', b'app'])
    registry.push_image('team/app', '1.0', [b'base', b'team'])
    registry.push_image('team/other', '1.0', [b'base', b'other'])
    alive = pull(registry, 'team/other:1.0')

    delete(registry, '-i', 'app:1.0', '-i', 'team/app:1.0')

    check(registry, alive, gone=['app:1.0', 'team/app:1.0'])
    with pytest.raises(PullError):
        registry.tags('app')


def test_a_repository_lives_on_with_untagged_images_only(registry):
    untagged = registry.push_image('app', None, [b'untagged'])
    registry.push_image('app', '1.0', [b'one'])
    alive = pull(registry, 'app@' + untagged)

    # Folders left empty go too, except those that the registry and its collector rely on.
    delete(registry, '-i', 'app:1.0', '-p')

    check(registry, alive, gone=['app:1.0'])
    assert registry.tags('app') == []


def test_a_repository_without_layers_lives_on(registry):
    # Such an index is what is left of a referrers tag when its last referrer was deleted.
    empty = registry.push_manifest('app', index_manifest([]), 'empty')
    registry.push_image('app', '1.0', [b'one'])
    alive = pull(registry, 'app:empty', 'app@' + empty)

    delete(registry, '-i', 'app:1.0', '-p')

    check(registry, alive, gone=['app:1.0'])


# --- by digest ------------------------------------------------------------------------------------

def test_a_digest_goes_with_the_tags_that_point_at_it(registry):
    doomed = registry.push_image('app', '1.0', [b'base', b'one'])
    for tag in ['latest', 'stable']:
        assert tag_again(registry, 'app', '1.0', tag) == doomed
    # "stable" has moved on: it keeps its name, and forgets that it stood for the deleted image.
    registry.push_image('app', 'stable', [b'base', b'two'])
    alive = pull(registry, 'app:stable')

    delete(registry, '-i', 'app@' + doomed)

    check(registry, alive, gone=['app:1.0', 'app:latest', 'app@' + doomed])
    manifests = registry.path('repositories/app/_manifests')
    assert (os.listdir(manifests + '/tags/stable/index/sha256')
            == os.listdir(manifests + '/revisions/sha256'))


def test_a_child_of_an_index_that_stays_is_not_deleted(registry, layout):
    amd, arm = layout.image('base', 'amd'), layout.image('base', 'arm', architecture='arm64')
    index = layout.index(amd, arm)
    registry.skopeo_copy(layout.tag('multi', index), 'app:1.0', '--all')
    alive = pull(registry, 'app:1.0')
    registry.stop()
    before = snapshot(registry.root)

    said = script(registry, '-i', 'app@' + digest_of(arm), status=1)

    assert 'app:1.0' in said and digest_of(arm) in said
    assert snapshot(registry.root) == before
    # Asked together with its index it is no question.
    registry.start()
    check(registry, alive)
    delete(registry, '-i', 'app@' + digest_of(arm), '-i', 'app@' + digest_of(index))
    check(registry, {}, gone=['app:1.0', 'app@' + digest_of(amd)])


# --- several platforms ----------------------------------------------------------------------------

def test_a_multi_arch_image_pushed_by_skopeo(registry, layout, tmp_path):
    def multi(name):
        return layout.tag(name, layout.index(
            layout.image('base', name), layout.image('arm', name, architecture='arm64')))

    one, two = multi('one'), multi('two')
    registry.skopeo_copy(one, 'app:1.0', '--all')
    registry.skopeo_copy(two, 'app:2.0', '--all')
    before, alive = pull(registry, 'app:1.0'), pull(registry, 'app:2.0')

    assert 'Deleted 1 tag, 3 manifests, ' in delete(registry, '-i', 'app:1.0')

    check(registry, alive, gone=['app:1.0'] + [
        'app@' + digest for digest in before['app:1.0'] - alive['app:2.0']])
    registry.skopeo_pull('app:2.0', tmp_path / 'pulled')
    registry.skopeo_copy(one, 'app:1.0', '--all')
    registry.skopeo_pull('app:1.0', tmp_path / 'pulled again')
    assert pull(registry, 'app:1.0') == before


def test_a_docker_manifest_list_pushed_over_http(registry):
    def push(tag):
        children = []
        for platform in [b'amd64', b'arm64']:
            data = [b'config ' + platform, b'base', platform + tag.encode()]
            for blob in data:
                registry.push_blob('app', blob)
            children.append(image_manifest(data[0], data[1:], mediaType=SCHEMA2))
            registry.push_manifest('app', children[-1])
        registry.push_manifest('app', index_manifest(children, DOCKER_LIST, SCHEMA2), tag)

    push('1.0')
    push('2.0')
    before, alive = pull(registry, 'app:1.0'), pull(registry, 'app:2.0')

    delete(registry, '-i', 'app:1.0')

    check(registry, alive, gone=['app:1.0'])
    push('1.0')
    assert pull(registry, 'app:1.0') == before


def test_a_child_that_two_indexes_share_stays_with_the_other(registry, layout):
    shared = layout.image('base', 'shared')
    for tag in ['1.0', '2.0']:
        own = layout.image('base', tag, architecture='arm64')
        registry.skopeo_copy(layout.tag(tag, layout.index(shared, own)), 'app:' + tag, '--all')
    alive = pull(registry, 'app:2.0')

    assert 'Deleted 1 tag, 2 manifests, ' in delete(registry, '-i', 'app:1.0')

    check(registry, alive, gone=['app:1.0'])


def test_an_index_of_indexes(registry, layout):
    inner = layout.index(layout.image('base', 'inner'))
    registry.skopeo_copy(layout.tag('inner', inner), 'app:inner', '--all')
    outer = index_manifest([inner], child_type=OCI_INDEX)
    registry.push_manifest('app', outer, 'outer')
    alive = pull(registry, 'app:inner')

    assert 'Deleted 1 tag, 1 manifest, ' in delete(registry, '-i', 'app:outer')
    check(registry, alive, gone=['app:outer'])

    registry.push_manifest('app', outer, 'outer')
    alive = pull(registry, 'app:outer')
    assert ': 0 bytes freed' in delete(registry, '-i', 'app:inner')
    check(registry, alive, gone=['app:inner'])


def test_an_index_over_children_that_were_pushed_as_blobs(registry):
    def push(tag):
        config, layer = b'{}', tag.encode()
        child = image_manifest(config, [b'base', layer])
        for data in [config, b'base', layer, child]:
            registry.push_blob('app', data)
        registry.push_manifest('app', index_manifest([child]), tag)

    push('1.0')
    push('2.0')
    before, alive = pull(registry, 'app:1.0'), pull(registry, 'app:2.0')

    delete(registry, '-i', 'app:1.0')

    # The collector knows no such child, it takes the layers: it shall not run here.
    check(registry, alive, gone=['app:1.0'], collect=False)
    push('1.0')
    assert pull(registry, 'app:1.0') == before


def test_manifests_linked_as_layers_by_an_old_registry(registry):
    links = [registry.push_image('app', tag, [b'base', tag.encode()]) for tag in ['1.0', '2.0']]
    before = pull(registry, 'app:1.0', 'app:2.0')
    registry.stop()
    for digest in links:  # as registry 2.1.0 wrote them
        shutil.move(registry.path('repositories/app/_manifests/revisions', digest),
                    registry.path('repositories/app/_layers', digest))
    registry.start()
    assert pull(registry, 'app:1.0', 'app:2.0') == before

    delete(registry, '-i', 'app:1.0')

    del before['app:1.0']
    # The collector of today looks for revisions only, and would take the image.
    check(registry, before, gone=['app:1.0'], collect=False)


def test_a_sparse_index_survives_and_goes(registry, layout):
    amd, arm = layout.image('base', 'amd'), layout.image('base', 'arm', architecture='arm64')
    registry.skopeo_copy(layout.tag('multi', layout.index(amd, arm)), 'app:1.0', '--all')
    registry.delete_manifest('app', digest_of(arm))
    absent = [digest_of(arm)]
    alive = pull(registry, 'app:1.0', absent=absent)
    # The data of what the API deleted is left to the collector.
    before = stored_blobs(registry)
    registry.push_image('app', '2.0', [b'two'])

    delete(registry, '-i', 'app:2.0')
    check(registry, alive, gone=['app:2.0'], absent=absent, rest=before)

    delete(registry, '-i', 'app:1.0')
    check(registry, {}, gone=['app:1.0'], rest=stored_blobs(registry))


# --- untagged -------------------------------------------------------------------------------------

def test_untagged_images_go_and_what_tags_reach_stays(registry, layout):
    former = registry.push_image('app', '1.0', [b'base', b'former'])
    registry.push_image('app', '1.0', [b'base', b'current'])
    untagged = registry.push_image('app', None, [b'base', b'untagged'])
    registry.skopeo_copy(layout.tag('multi', layout.index(layout.image('multi'))),
                         'app:multi', '--all')
    other = registry.push_image('other', None, [b'base', b'not asked for'])
    alive = pull(registry, 'app:1.0', 'app:multi', 'other@' + other)

    assert 'Deleted 2 manifests, ' in delete(registry, '-u', '-i', 'app')

    check(registry, alive, gone=['app@' + former, 'app@' + untagged])
    assert 'Nothing to delete' in delete(registry, '-u', '-i', 'app')


@pytest.mark.parametrize('tag', [None, 'a referrer tag'])
def test_untagged_leaves_a_repository_without_tags_alone(registry, tag):
    digest = registry.push_image('app', None, [b'used by digest'])
    alive = {}
    if tag:
        signature = digest.replace(':', '-') + '.sig'
        registry.push_image('app', signature, [b'signature'])
        alive = pull(registry, 'app:' + signature)
    alive.update(pull(registry, 'app@' + digest))

    said = delete(registry, '-u', '-i', '*')

    assert 'WARNING' in said and 'app' in said
    check(registry, alive)
    delete(registry, '-i', 'app')
    check(registry, {}, gone=alive)


# --- referrers ------------------------------------------------------------------------------------

def push_with_referrers(registry, tag):
    """An image with a signature and an attestation by tag, and an SBOM and its signature by
    subject: the SBOM listed by the fallback tag, its signature by nothing. All references to them.
    """
    image = registry.push_image('app', tag, [b'base', tag.encode()])
    prefix = image.replace(':', '-')
    subject = {'mediaType': OCI_IMAGE, 'digest': image, 'size': 1}
    sbom = registry.push_image('app', None, [b'sbom of ' + tag.encode()], subject=subject,
                               artifactType='application/spdx+json')
    signature = registry.push_image('app', None, [b"sbom's signature, " + tag.encode()],
                                    subject=dict(subject, digest=sbom))
    registry.push_image('app', prefix + '.sig', [b'signature of ' + tag.encode()])
    registry.push_image('app', prefix + '.att', [b'attestation of ' + tag.encode()])
    registry.push_manifest('app', index_manifest(
        [{'mediaType': OCI_IMAGE, 'digest': sbom, 'size': 1}]), prefix)
    return ['app:' + tag, 'app:' + prefix + '.sig', 'app:' + prefix + '.att', 'app:' + prefix,
            'app@' + sbom, 'app@' + signature]


def test_referrers_go_with_their_image(registry):
    doomed = push_with_referrers(registry, '1.0')
    kept = push_with_referrers(registry, '2.0')
    before, alive = pull(registry, *doomed), pull(registry, *kept)

    assert 'Nothing to delete' in delete(registry, '-u', '-i', 'app')
    check(registry, dict(before, **alive))

    assert 'Deleted 4 tags, 6 manifests, ' in delete(registry, '-i', 'app:1.0')
    check(registry, alive, gone=doomed)

    push_with_referrers(registry, '1.0')
    assert pull(registry, *doomed) == before


def test_referrers_of_an_untagged_image_go_with_it(registry):
    doomed = push_with_referrers(registry, '1.0')
    image = registry.push_image('app', '1.0', [b'another'])
    kept = push_with_referrers(registry, '2.0')
    alive = pull(registry, 'app@' + image, *kept)
    alive['app:1.0'] = alive['app@' + image]

    delete(registry, '-u', '-i', 'app')

    check(registry, alive, gone=doomed[1:])


def test_a_signature_alone_is_deleted_by_its_full_name_only(registry):
    image, signature = push_with_referrers(registry, '1.0')[:2]
    others = push_with_referrers(registry, '2.0')
    every = pull(registry, image, signature, *others)

    # A pattern never selects a referrer tag.
    delete(registry, '-i', 'app:*.sig')
    assert pull(registry, *every) == every

    delete(registry, '-i', signature)
    assert registry.missing(*split(signature))
    del every[signature]
    assert pull(registry, *every) == every


def test_a_tag_that_is_its_own_images_digest_is_an_ordinary_tag(registry):
    # As imgpkg names the images that it copies.
    digest = registry.push_image('app', None, [b'bundle'])
    tag = digest.replace(':', '-') + '.imgpkg'
    tag_again(registry, 'app', digest, tag)
    alive = pull(registry, 'app:' + tag)

    assert 'Nothing to delete' in delete(registry, '-u', '-i', 'app')
    check(registry, alive)

    # It is the last tag of all.
    said = delete(registry, '-i', 'app:*.imgpkg', status=1)
    assert '--allow-remove-all' in said
    check(registry, alive)

    delete(registry, '-i', 'app:*.imgpkg', '--allow-remove-all')
    check(registry, {}, gone=alive)


# --- other content --------------------------------------------------------------------------------

def test_a_layer_pushed_under_sha512(registry):
    def push(tag, *layers):
        registry.push_blob('app', b'{}')
        for layer in layers:
            registry.push_blob('app', layer, 'sha512')
        registry.push_manifest('app', image_manifest(
            b'{}', [descriptor(layer, OCI_LAYER, 'sha512') for layer in layers]), tag)

    push('1.0', b'base', b'one')
    push('2.0', b'base', b'two')
    # The same layer, under its other name.
    registry.push_image('app', '3.0', [b'one'])
    before = pull(registry, 'app:1.0', 'app:2.0', 'app:3.0')

    def alive(*references):
        return {reference: before[reference] for reference in references}

    def on_disk(*references):
        """The blobs of these images, each under its sha256."""
        names = {digest_of(data, 'sha512'): digest_of(data) for data in [b'base', b'one', b'two']}
        return {names.get(digest, digest) for one in references for digest in before[one]}

    # The registry's collector knows only sha256 and takes every such layer: it shall not run here.
    delete(registry, '-i', 'app:1.0')
    assert pull(registry, 'app:2.0', 'app:3.0') == alive('app:2.0', 'app:3.0')
    assert stored_blobs(registry) == on_disk('app:2.0', 'app:3.0')
    assert registry.missing('app', '1.0')

    delete(registry, '-i', 'app:3.0')
    assert pull(registry, 'app:2.0') == alive('app:2.0')
    assert stored_blobs(registry) == on_disk('app:2.0')

    push('1.0', b'base', b'one')
    assert pull(registry, 'app:1.0', 'app:2.0') == alive('app:1.0', 'app:2.0')
    delete(registry, '-i', 'app:1.0', '-i', 'app:2.0')
    check(registry, {})


def test_a_buildkit_cache_is_an_index_over_layers(registry):
    def push(tag, *layers):
        config = b'cache config ' + tag.encode()
        for data in layers + (config,):
            registry.push_blob('app', data)
        registry.push_manifest('app', index_manifest(
            [descriptor(layer, OCI_LAYER) for layer in layers]
            + [descriptor(config, CACHE_CONFIG)]), tag)

    push('cache', b'base', b'step one')
    push('branch', b'base', b'step two')
    registry.push_image('app', '1.0', [b'base', b'step one'])
    before, alive = pull(registry, 'app:cache'), pull(registry, 'app:branch', 'app:1.0')

    delete(registry, '-i', 'app:cache')

    check(registry, alive, gone=['app:cache'])
    push('cache', b'base', b'step one')
    assert pull(registry, 'app:cache') == before


def test_foreign_layers_are_stored_elsewhere(registry):
    far = descriptor(b'far away', FOREIGN_LAYER, urls=['https://example.com/layer'])
    for tag in ['1.0', '2.0']:
        config = tag.encode()
        registry.push_blob('app', config)
        registry.push_blob('app', b'base')
        registry.push_manifest('app', image_manifest(
            config, [descriptor(b'base', OCI_LAYER), far], mediaType=SCHEMA2), tag)
    absent = [far['digest']]
    alive = pull(registry, 'app:2.0', absent=absent)

    delete(registry, '-i', 'app:1.0')

    check(registry, alive, gone=['app:1.0'], absent=absent)


def test_an_artifact_manifest_on_the_disk(registry):
    # 2.8.2 takes no such manifest; other registries wrote them to the same store.
    subjects = [registry.push_image('app', tag, [tag.encode()]) for tag in ['1.0', '2.0']]
    blobs = [registry.push_blob('app', data) for data in [b"one's sbom", b"two's sbom"]]
    alive = pull(registry, 'app:2.0')
    registry.stop()
    artifacts = []
    for subject, blob in zip(subjects, blobs):
        artifact = encode({'mediaType': OCI_ARTIFACT, 'artifactType': 'application/spdx+json',
                           'blobs': [{'mediaType': 'text/plain', 'digest': blob, 'size': 10}],
                           'subject': {'mediaType': OCI_IMAGE, 'digest': subject, 'size': 1}})
        artifacts.append(digest_of(artifact))
        for path, content in [
                (registry.blob_path(artifacts[-1]) + '/data', artifact),
                (registry.path('repositories/app/_manifests/revisions', artifacts[-1], 'link'),
                 artifacts[-1].encode())]:
            write(path, content)
    registry.start()

    delete(registry, '-i', 'app:1.0')

    check(registry, alive, gone=['app:1.0'], rest=[artifacts[1], blobs[1]], collect=False)
    delete(registry, '-i', 'app:2.0')
    check(registry, {}, gone=['app:2.0'])


# --- what is left of other deletions, and of pushes -----------------------------------------------

def test_what_the_api_deleted_before(registry):
    former = registry.push_image('app', '1.0', [b'base', b'former'])
    registry.push_image('app', '1.0', [b'base', b'current'])
    emptied = registry.push_image('emptied', '1.0', [b'base', b'emptied'])
    by_digest = registry.push_image('app', '2.0', [b'base', b'two'])
    registry.push_image('app', '3.0', [b'base', b'three'])
    pulled = pull(registry, 'app@' + former, 'app:2.0', 'emptied:1.0', 'app:1.0', 'app:3.0')
    registry.delete_manifest('app', former)
    registry.delete_manifest('app', by_digest)
    registry.delete_manifest('emptied', emptied)
    assert registry.catalog() == ['app', 'emptied']
    alive = {'app:3.0': pulled['app:3.0']}
    # Deleted over the API, these are linked as layers still, or not at all: the collector's work.
    left = pulled['app@' + former] | pulled['app:2.0']

    delete(registry, '-i', 'app:1.0')
    assert stored_blobs(registry) == left.union(pulled['emptied:1.0'], *alive.values())
    assert pull(registry, *alive) == alive

    # An emptied repository has neither tag nor manifest; named, it goes with all its links.
    delete(registry, '-i', 'emptied')
    left |= {emptied}
    check(registry, alive, gone=['app:1.0', 'app:2.0', 'emptied:1.0'], rest=left)


def test_an_upload_that_is_under_way_can_go_on(registry):
    registry.push_image('app', '1.0', [b'one'])
    upload = registry.begin_upload('app', b'first half, ')

    delete(registry, '-i', 'app:1.0', '-p')

    registry.finish_upload(upload, b'second half', b'first half, second half')
    registry.push_image('app', '2.0', [b'first half, second half'])
    check(registry, pull(registry, 'app:2.0'), gone=['app:1.0'])


def test_an_upload_given_up_goes_with_its_repository(registry):
    registry.push_image('app', '1.0', [b'one'])
    registry.begin_upload('app')
    registry.stop()
    for folder, folders, files in os.walk(registry.path('repositories/app/_uploads')):
        for name in files + ['.']:
            set_age(os.path.join(folder, name), 2 * DAY)

    script(registry, '-i', 'app:1.0')

    assert not os.path.exists(registry.path('repositories/app'))
    registry.start()
    check(registry, {}, gone=['app:1.0'])


def test_a_new_registry(registry):
    assert os.listdir(registry.root) == []
    assert 'ERROR' in delete(registry, '-i', 'app', status=1)
    registry.begin_upload('other')  # which makes no folder for blobs
    said = delete(registry, '-i', 'app', status=1)
    assert "No repository 'app' found in repositories directory" in said
    said = delete(registry, '-i', 'other:1.0', status=1)
    assert "No repository 'other' tag '1.0' found in repositories directory" in said
    delete(registry, '-i', 'other', '-p')
    registry.push_image('app', '1.0', [b'one'])
    pull(registry, 'app:1.0')


def test_a_config_that_stands_twice(registry):
    # Of two keys the registry uses the one that is not null.
    config = registry.push_blob('app', b'config of both')
    for layer in [b'one', b'two']:
        registry.push_blob('app', layer)
    twice = image_manifest(b'config of both', [b'one'])[:-1] + b',"config":null}'
    registry.push_manifest('app', twice, '1.0')
    registry.push_manifest('app', image_manifest(b'config of both', [b'two']), '2.0')
    alive = pull(registry, 'app:1.0')

    delete(registry, '-i', 'app:2.0')

    check(registry, alive, gone=['app:2.0'], rest=[config])
    assert registry.request('/v2/app/blobs/' + config)[0] == 200
    delete(registry, '-u', '-g')
    check(registry, alive, rest=[config])


# --- what is damaged ------------------------------------------------------------------------------

def test_a_damaged_manifest_keeps_just_its_repository_from_being_cleaned(registry):
    for repo in ['app', 'other']:
        for tag in ['1.0', '2.0']:
            registry.push_image(repo, tag, [b'base', repo.encode(), (repo + tag).encode()])
    damaged = registry.push_image('app', 'broken', [b'base', b'broken'])
    whole = pull(registry, 'app:1.0', 'app:2.0', 'other:1.0')
    broken = pull(registry, 'app:broken')['app:broken']
    registry.stop()
    write(registry.blob_path(damaged) + '/data', b'')

    before = snapshot(registry.path('repositories/app'))
    said = script(registry, '-i', 'app:1.0', '-i', 'other:2.0', '-g', status=3)
    assert 'app@' + damaged in said and 'empty' in said
    assert snapshot(registry.path('repositories/app')) == before
    registry.start()
    assert pull(registry, *whole) == whole
    assert stored_blobs(registry) == broken.union(*whole.values())

    # The manifest that nobody can read goes by itself; what only it may have used is for -g.
    delete(registry, '-i', 'app:broken')
    delete(registry, '-g')
    check(registry, whole, gone=['app:broken', 'other:2.0'])


@pytest.mark.parametrize('absent', ['all', 'one folder'])
def test_a_disk_that_was_not_mounted(registry, tmp_path, absent):
    for number in range(4):
        registry.push_image('app', '%d' % number, [b'base', b'%d' % number])
    registry.push_image('other', '1.0', [b'base', b'other'])
    alive = pull(registry, *['app:%d' % number for number in range(4)], 'other:1.0')
    doomed = registry.push_image('other', '2.0', [b'base', b'two'])
    registry.stop()
    blobs, disk = registry.path('blobs/sha256'), str(tmp_path / 'disk')
    folders = os.listdir(blobs) if absent == 'all' else [min(alive['app:0'])[7:9]]
    os.mkdir(disk)
    for folder in folders:
        shutil.move(os.path.join(blobs, folder), disk)

    if absent == 'all':
        before = snapshot(registry.root)
        for request in [['-i', 'other:2.0'], ['-u', '-g'], ['-p']]:
            assert 'mount' in script(registry, *request, status=1)
        assert snapshot(registry.root) == before
    # Someone pushes what fits in the hole, and someone cleans up.
    registry.start()
    registry.push_image('new', '1.0', [b'base', b'new'])
    alive.update(pull(registry, 'new:1.0'))
    registry.stop()
    run(registry, '-u', '-g', '-p', status=None)
    subprocess.run(['cp', '-a', disk + '/.', blobs], check=True)
    registry.start()

    assert pull(registry, *alive) == alive
    delete(registry, '-i', 'other@' + doomed, '-g')
    check(registry, alive, gone=['other:2.0'])


def test_damage_is_listed_and_found(registry):
    for tag in ['1.0', '2.0']:
        registry.push_image('team/app', tag, [b'base', tag.encode()])
    registry.push_image('team/base', '1.0', [b'base'])
    doomed = pull(registry, 'team/app:2.0')['team/app:2.0']
    registry.stop()
    listing = json.loads(run(registry, '-l', '--json')[0])
    assert [(line['repository'], line['tags'], line['damage']) for line in sorted(
        listing['images'], key=lambda line: line['repository'])] == [
            ('team/app', 2, None), ('team/base', 1, None)]
    assert run(registry, '--check', '-q')[0] == ''

    with open(registry.blob_path(digest_of(b'2.0')) + '/data', 'r+b') as file:
        file.write(b'3')
    out, said = run(registry, '--check', status=3)
    assert 'team/app' in out + said and digest_of(b'2.0') in out + said
    assert 'team/base' not in out
    assert run(registry, '--check', '-i', 'team/app:1.0')
    # Names are made for -i.
    names = run(registry, '-l', '-q', '-i', 'team/app:2*')[0]
    assert names == 'team/app:2.0\n'
    out, said = run(registry, '-i', '-', said=names)
    registry.start()
    assert registry.missing('team/app', '2.0') and stored_blobs(registry).isdisjoint(
        doomed - pull(registry, 'team/app:1.0')['team/app:1.0'])


# --- undone, by the operator and by a crash -------------------------------------------------------

def test_what_was_saved_comes_back(registry, layout, tmp_path):
    one, two = layout.image('base', 'one'), layout.image('base', 'two', architecture='arm64')
    registry.skopeo_copy(layout.tag('multi', layout.index(one, two)), 'app:1.0', '--all')
    signed = push_with_referrers(registry, 'signed')
    registry.push_image('app', '2.0', [layer_of('base'), b'its own'])
    every, alive = pull(registry, 'app:1.0', 'app:2.0', *signed), pull(registry, 'app:2.0')
    registry.stop()
    files = {path: what for path, what in snapshot(registry.v2).items() if what[0] == 'file'}

    script(registry, '-i', 'app:1.0', '-i', 'app:signed', '--save', str(tmp_path / 'saved.tar'))
    registry.start()
    check(registry, alive, gone=['app:1.0'] + signed)
    registry.stop()
    subprocess.run(['tar', '-xf', str(tmp_path / 'saved.tar'), '-C', registry.v2], check=True)

    assert files == {path: what for path, what in snapshot(registry.v2).items()
                     if what[0] == 'file'}
    registry.start()
    registry.skopeo_pull('app:1.0', tmp_path / 'pulled')
    check(registry, every)


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    return faults.build(tmp_path_factory.mktemp('library'))


def kill(registry, library, tmp_path, part, *arguments):
    """Run the script on the stopped registry and kill it when it has done this part of its work."""
    copy, log = Registry(tmp_path / 'copy'), tmp_path / 'calls'
    shutil.copytree(registry.root, copy.root, dirs_exist_ok=True)
    run(copy, *arguments, LD_PRELOAD=library, **faults.environment(copy.root, log=log))
    calls = log.read_text().splitlines()
    run(registry, *arguments, status=faults.KILLED, LD_PRELOAD=library, **faults.environment(
        registry.root, at=1 + int(part * (len(calls) - 1)), do='kill'))


PARTS = [0.3, 0.5, 0.7, 0.9]    # of what a run changes


@pytest.mark.parametrize('part', PARTS)
def test_an_image_that_is_pushed_again_after_a_kill(registry, library, tmp_path, part):
    doomed = push_with_referrers(registry, '1.0')
    kept = push_with_referrers(registry, '2.0')
    alive = pull(registry, *doomed, *kept)
    registry.stop()
    kill(registry, library, tmp_path, part, '-i', 'app:1.0')
    registry.start()
    assert pull(registry, *kept) == {reference: alive[reference] for reference in kept}
    push_with_referrers(registry, '1.0')

    delete(registry, '-u', '-g')

    check(registry, alive)


@pytest.mark.parametrize('part', PARTS)
def test_a_backup_that_is_restored_after_a_kill(registry, library, tmp_path, part):
    """Over what is there, so what the run left lies beside it."""
    images = push_with_referrers(registry, '1.0') + ['other:1.0']
    registry.push_image('other', '1.0', [b'base', b'other'])
    alive = pull(registry, *images)
    registry.stop()
    backup = str(tmp_path / 'backup')
    subprocess.run(['cp', '-a', registry.root, backup], check=True)
    kill(registry, library, tmp_path, part, '-i', 'app')
    subprocess.run(['cp', '-a', backup + '/.', registry.root], check=True)
    registry.start()

    delete(registry, '-u', '-g')

    check(registry, alive)
