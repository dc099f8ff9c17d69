"""The rules: --keep-last, --older-than and --by, expressions, and what is said of what they keep.

A selection by rules on random tags is compared with the same rules, said once more in plain words.
"""

import fnmatch
import functools
import itertools
import json
import os
import random
import re
import tempfile
import time
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import event, given, note, settings, strategies as st

import model
from test_command import call, current, small_registry, tags
from test_list import listed, standard_input, the_json, words
import test_trees  # noqa: F401  (its settings of Hypothesis)
from tree import DAY, Tree, digest_of, encode, set_age, snapshot, write

HOUR, YEAR = 3600, 365 * DAY
MISSING = 'sha256:' + '0' * 64


@pytest.fixture
def tree(tmp_path):
    return small_registry(tmp_path / 'registry')


def date(age, style='Z', now=None):
    """A date of `age` seconds ago, as images have them."""
    then = datetime.fromtimestamp((now or time.time()) - age, timezone.utc)
    if style == 'Z':
        return then.strftime('%Y-%m-%dT%H:%M:%SZ')
    if style == 'nanoseconds':
        return then.strftime('%Y-%m-%dT%H:%M:%S.123456789Z')
    return then.astimezone(timezone(timedelta(hours=-7, minutes=-30))).isoformat()


def with_config(tree, repo, config, *layers):
    return tree.image(repo, layers, config=encode(config))


# --- semantic versioning --------------------------------------------------------------------------

# The examples of semver.org, section 11, in order; and what registries have beside.
SECTION_11 = [
    ['1.0.0', '2.0.0', '2.1.0', '2.1.1'],
    ['1.0.0-alpha', '1.0.0'],
    ['1.0.0-alpha', '1.0.0-alpha.1', '1.0.0-alpha.beta', '1.0.0-beta', '1.0.0-beta.2',
     '1.0.0-beta.11', '1.0.0-rc.1', '1.0.0']]
ASCENDING = SECTION_11 + [
    ['v1.1.0', 'v1.9.0', 'v1.10.0', 'v1.11.0-rc1', 'v1.11.0'],
    ['1.2-rc1', '1.2', '1.2.1', '1.2.1.1', '1.3', 'v2.0', '2026.1', '2026.11'],
    ['0.9.99999999999999999999', '0.10.0', '1.0.0-1', '1.0.0-2', '1.0.0-11', '1.0.0-1a',
     '1.0.0-A', '1.0.0-a', '1.0.0-a-b', '1.0.0-aa', '1.0.0']]
NO_VERSIONS = ['latest', 'v1', '7', '1.2.3.4.5', 'build-1.2', '1.2.', '1.2x', 'v', 'vv1.2', '1..2',
               '1.2-', 'x1.2.3', '1_2_3', 'main', 'stable-1']


@pytest.mark.parametrize('order', ASCENDING, ids=lambda order: order[0] + '…' + order[-1])
def test_versions_in_the_order_of_semantic_versioning(tmp_path, order):
    """Whatever order they were pushed in, the N last are the N highest."""
    tree, shuffled = Tree(tmp_path), list(order)
    random.Random(1).shuffle(shuffled)
    for age, tag in enumerate(shuffled):
        tree.tag('app', tag, tree.image('app', [tag.encode()]), age=age * HOUR)
    for kept in range(len(order) + 1):
        found = listed(tree, '-i', 'app:*', '--by', 'version', '--keep-last', str(kept))
        assert {image['tag'] for image in found['images']} == set(order[:len(order) - kept])


def test_what_is_no_version_stays_and_takes_no_place(tmp_path):
    tree = Tree(tmp_path)
    for tag in NO_VERSIONS + ['1.0', '1.1', '1.2']:
        tree.tag('app', tag, tree.image('app', [tag.encode()]))
    assert call('-d', tree.root, '-i', 'app:*', '--by', 'version', '--keep-last', '1').status == 0
    assert tags(tree, 'app') == sorted(NO_VERSIONS + ['1.2'])


def test_the_same_version_twice_is_a_tie(tmp_path):
    tree = Tree(tmp_path)
    for tag in ['v1.2', '1.2.0', '1.2.0.0', '1.1']:
        tree.tag('app', tag, tree.image('app', [tag.encode()]))
    found = listed(tree, '-i', 'app:*', '--by', 'version', '--keep-last', '1')
    assert words(found) == ['app:1.1']


def test_a_hot_fix_of_an_old_version(tmp_path):
    """The newest push is not the newest version."""
    tree = Tree(tmp_path)
    for age, tag in enumerate(['v1.1.1', 'v1.10.0', 'v1.9.0', 'v1.1.0']):
        tree.tag('app', tag, tree.image('app', [tag.encode()]), age=age * DAY)
    assert call('-d', tree.root, '-i', 'app:*', '--keep-last', '2', '--by', 'version').status == 0
    assert tags(tree, 'app') == ['v1.10.0', 'v1.9.0']


# --- plainly said ---------------------------------------------------------------------------------

VERSION = re.compile(r'v?([0-9]+(?:\.[0-9]+){1,3})(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?')


@functools.total_ordering
class Version:
    """A version as section 11 of semver.org orders them."""

    def __init__(self, numbers, pre_release):
        self.numbers = (numbers + [0, 0])[:4]
        self.pre_release = pre_release.split('.') if pre_release else None

    def __eq__(self, other):
        return self.numbers == other.numbers and self.pre_release == other.pre_release

    def __lt__(self, other):
        if self.numbers != other.numbers:
            return self.numbers < other.numbers
        if self.pre_release is None or other.pre_release is None:
            return self.pre_release is not None and other.pre_release is None
        for one, two in itertools.zip_longest(self.pre_release, other.pre_release):
            if one != two:
                return precedes(one, two)
        return False


def precedes(one, two):
    """Of two different identifiers of pre-releases."""
    if one is None or two is None:
        return one is None
    if one.isdigit() and two.isdigit():
        return int(one) < int(two)
    return one.isdigit() or not two.isdigit() and one < two


def version(tag):
    match = VERSION.fullmatch(tag)
    return match and Version([int(one) for one in match[1].split('.')], match[2])


class Pushed:
    """A tag of the test: when it was pushed, and the date of its image, None where it has none."""

    def __init__(self, repo, tag, digest, pushed, created):
        self.repo, self.tag, self.digest = repo, tag, digest
        self.pushed, self.created, self.version = pushed, created, version(tag)

    def named_by(self, image):
        name, _, wanted = image.partition(':')
        if '@' in image:
            return bool(self.digest) and image == '%s@%s' % (self.repo, self.digest)
        if not fnmatch.fnmatchcase(self.repo, name):
            return False
        if wanted[:1] == '/':
            return re.fullmatch(wanted[1:-1], self.tag) is not None
        return not wanted or fnmatch.fnmatchcase(self.tag, wanted)


def plainly_selected(pushed, images, excluded, keep_last, older_than, by):
    """Of the tags that match, first those that -x names are left out, then the N newest; of the
    rest those older than AGE go. A tie at the cut is kept. A tag without the date or version that
    --by asks for stays and takes no place; a broken one takes none of one that can be pulled."""
    selected = set()
    for image, repo in itertools.product(images, {one.repo for one in pushed}):
        left = [one for one in pushed if one.repo == repo and one.named_by(image)
                and not any(one.named_by(other) for other in excluded)
                and getattr(one, by) is not None]
        for one in left:
            newer = [other for other in [other for other in left if other.digest] or left
                     if getattr(other, by) > getattr(one, by)]
            if keep_last is not None and len(newer) < keep_last:
                continue
            if older_than is not None and getattr(one, by) >= time.time() - older_than:
                continue
            selected.add('%s:%s' % (one.repo, one.tag))
    return selected


AGES = [hours * HOUR for hours in (0.5, 0.5, 5.5, 23.5, 24.5, 47.5, 24 * 7.5, 24 * 400, -1.5)]
OLDER = {None: None, '1h': HOUR, '6h': 6 * HOUR, '1d': DAY, '2d': 2 * DAY, '1w': 7 * DAY,
         '1y': YEAR}
NO_DATES = [{}, {'created': None}, {'created': ''}, {'created': 'yesterday'}, {'created': 7},
            {'created': '0001-01-01T00:00:00Z'}, {'created': ['2020-01-01T00:00:00Z']},
            # Builds that leave no trace of the time give all images one date.
            {'created': '1970-01-01T00:00:00Z'}, {'created': '1980-01-01T00:00:01Z'}]
TAGS = ['v1.0.0', '1.0.0', '1.0', 'v1.0.0-rc.1', '1.0.0-rc.2', '1.0.0-rc.11', '1.0.0-alpha',
        '1.9', '1.10', 'v1.10.1', 'latest', 'pr-1', 'pr-2', '2026.11', '7']


class Pusher:
    """Pushes images with dates of all kinds to two repositories."""

    def __init__(self, tree, draw, now):
        self.tree, self.draw, self.now, self.count = tree, draw, now, 0

    def pick(self, *choices):
        return self.draw(st.sampled_from(choices))

    def tags(self):
        found = []
        for repo in 'a', 'a/b':
            for tag in self.draw(st.lists(st.sampled_from(TAGS), max_size=7, unique=True)):
                digest, created = self.manifest(repo)
                self.tree.tag(repo, tag, digest)
                pushed = self.now - self.pick(*AGES)
                os.utime(self.tree.tag_link(repo, tag), (pushed, pushed))
                if self.pick(*[False] * 9 + [True]):
                    os.remove(self.tree.tag_link(repo, tag))
                    digest = pushed = created = None    # nobody knows
                found.append(Pushed(repo, tag, digest, pushed, created))
        return found

    def manifest(self, repo):
        return self.pick(self.image, self.image, self.schema1, self.index)(repo)

    def a_date(self):
        """(its text, the time that it stands for)."""
        age, style = self.pick(*AGES), self.pick('Z', 'nanoseconds', 'offset')
        then = int(self.now) - age
        return date(age, style, int(self.now)), then + (
            .123456789 if style == 'nanoseconds' else 0)

    def image(self, repo):
        self.count += 1
        config, created = {'number': self.count}, None
        if self.pick(True, True, True, False):
            config['created'], created = self.a_date()
        else:
            config.update(self.pick(*NO_DATES))
        return with_config(self.tree, repo, config, b'layer'), created

    def schema1(self, repo):
        """The newest layer comes first in the history, and each has a date."""
        self.count += 1
        history = sorted([self.a_date() for _ in range(self.pick(1, 2))],
                         key=lambda pair: -pair[1])
        digest = self.tree.manifest(repo, {
            'schemaVersion': 1, 'name': repo, 'tag': str(self.count),
            'fsLayers': [{'blobSum': self.tree.layer(repo, b'layer')} for _ in history],
            'history': [{'v1Compatibility': json.dumps({'created': text})}
                        for text, _ in history]})
        return digest, history[0][1]

    def index(self, repo):
        self.count += 1
        children = [self.pick(self.image, self.schema1, self.index)(repo)
                    for _ in range(self.pick(0, 1, 2))]
        digest = self.tree.index(repo, [child for child, _ in children] + [MISSING],
                                 annotations={'number': str(self.count)})
        return digest, max((created for _, created in children if created), default=None)


@given(st.data())
@settings(max_examples=100)
def test_a_selection_by_rules(data):
    with tempfile.TemporaryDirectory() as folder:
        pusher = Pusher(Tree(folder), data.draw, time.time())
        pushed, tree = pusher.tags(), pusher.tree
        literal = ['%s:%s' % (one.repo, one.tag) for one in pushed]
        images = [pusher.pick('a:*', '*:*', 'a*:*1*', '*:v*', r'*:/v?[0-9]+\.[0-9.]+/',
                              '*:/.*[0-9]/', *literal[:2]) for _ in range(pusher.pick(1, 1, 2))]
        excluded = data.draw(st.lists(st.sampled_from(
            ['*:latest', 'a/*', 'nothing*:*', '*:/.*-rc.*/', 'a*:1.?'] + literal[:2]
            + ['%s@%s' % (one.repo, one.digest) for one in pushed[:3] if one.digest]),
            max_size=2))
        by, keep_last = pusher.pick('pushed', 'created', 'version'), pusher.pick(None, 0, 1, 2, 3)
        older = pusher.pick(*OLDER) if by != 'version' else None
        arguments = [part for image in images for part in ('-i', image)]
        arguments += [part for image in excluded for part in ('-x', image)]
        if keep_last is None and older is None:
            keep_last = 1
        arguments += [] if keep_last is None else ['--keep-last', str(keep_last)]
        arguments += [] if older is None else ['--older-than', older]
        arguments += [] if by == 'pushed' and pusher.pick(True, False) else ['--by', by]
        expected = plainly_selected(pushed, images, excluded, keep_last, OLDER[older], by)
        event('%s: %s' % (by, 'some' if expected else 'none'))
        try:
            assert set(words(listed(tree, *arguments))) == expected
            found = the_json('-d', tree.v2, '-n', '--allow-remove-all', *arguments)
            assert set(found['tags']) == expected
        except AssertionError:
            note('\n'.join([' '.join(arguments)] + [str(vars(one)) for one in pushed]))
            raise


# --- rule by rule ---------------------------------------------------------------------------------

@pytest.fixture
def builds(tmp_path):
    """Five builds, one a day; 3 and 4 at the same moment. The oldest is signed."""
    tree = Tree(tmp_path)
    now = time.time()
    for number, days in enumerate([5, 4, 3, 3, 1], 1):
        tree.tag('app', 'pr-%d' % number, tree.image('app', [b'base', b'%d' % number]))
        then = now - days * DAY - HOUR
        os.utime(tree.tag_link('app', 'pr-%d' % number), (then, then))
    signature = current(tree, 'app', 'pr-1').replace(':', '-') + '.sig'
    tree.tag('app', signature, tree.image('app', [b'signature']))
    tree.signature = signature
    return tree


@pytest.mark.parametrize('rules, gone', [
    (['--keep-last', '1'], [1, 2, 3, 4]),
    (['--keep-last', '2'], [1, 2]),             # 3 and 4 are the same age: both are kept
    (['--keep-last', '3'], [1, 2]),
    (['--keep-last', '9'], []),
    (['--keep-last', '0', '--allow-remove-all'], [1, 2, 3, 4, 5]),
    (['--older-than', '72h'], [1, 2, 3, 4]),
    (['--older-than', '4d'], [1, 2]),
    (['--older-than', '1w'], []),
    (['--keep-last', '4', '--older-than', '3d'], [1]),
    (['--keep-last', '1', '--older-than', '5d'], [1]),
    (['-x', 'app:pr-5', '--keep-last', '1'], [1, 2]),   # what is excluded is not counted
    (['-x', 'app:pr-[12]', '--older-than', '1d'], [3, 4, 5]),
    (['-x', 'app', '--older-than', '1d'], []),
    (['-x', 'other*:*', '--older-than', '4d'], [1, 2]),
])
def test_rules(builds, rules, gone):
    assert call('-d', builds.root, '-i', 'app:pr-*', *rules).status == 0
    left = ['pr-%d' % number for number in range(1, 6) if number not in gone]
    # The signature goes with its image, and is never counted.
    left += [builds.signature] if 1 not in gone else []
    assert tags(builds, 'app') == sorted(left)


def test_orphan_signatures_take_no_place(builds):
    """As the newest of all tags they would be the ones that are kept."""
    for number in range(3):
        builds.tag('app', 'sha256-%064x.sig' % number, builds.image('app', [b'%d' % number]))
    assert call('-d', builds.root, '-i', 'app:*', '--keep-last', '2').status == 0
    assert [tag for tag in tags(builds, 'app') if tag[:3] == 'pr-'] == ['pr-3', 'pr-4', 'pr-5']
    assert len(tags(builds, 'app')) == 6


def test_each_image_keeps_its_own(builds):
    call('-d', builds.root, '-i', 'app:pr-[12]', '-i', 'app:pr-[345]', '--keep-last', '1')
    assert tags(builds, 'app') == ['pr-2', 'pr-5']


def test_each_repository_keeps_its_own(builds):
    for tag, age in [('pr-1', 9 * DAY), ('pr-2', 8 * DAY)]:
        builds.tag('team/app', tag, builds.image('team/app', [tag.encode()]), age)
    call('-d', builds.root, '-i', '*:pr-*', '--keep-last', '1')
    assert tags(builds, 'app') == ['pr-5'] and tags(builds, 'team/app') == ['pr-2']


def test_a_tag_of_unknown_age_is_kept_by_a_rule(builds):
    os.remove(builds.tag_link('app', 'pr-1'))
    call('-d', builds.root, '-i', 'app:pr-*', '--keep-last', '1', '--older-than', '1h')
    assert tags(builds, 'app')[:2] == ['pr-1', 'pr-5']


@pytest.mark.parametrize('arguments, reason', [
    (['-i', 'app', '--keep-last', '3'], 'tags'),
    (['-i', 'app', '--older-than', '3d'], 'tags'),
    (['-i', 'app:*', '-i', 'team/other', '--keep-last', '3'], 'tags'),
    (['-i', 'app@' + MISSING, '--keep-last', '3'], 'tags'),
    (['-u', '-i', 'app', '--keep-last', '3'], '--keep-last'),
    (['-g', '--keep-last', '3'], '--keep-last'),
    (['-p', '--older-than', '3d'], '--older-than'),
    (['--keep-last', '3'], 'image is required'),
    (['-i', 'app:*', '--keep-last', '-1'], 'negative'),
    (['-i', 'app:*', '--keep-last', 'x'], '--keep-last'),
    (['-i', 'app:*', '--older-than', '3'], '12h, 30d'),
    (['-i', 'app:*', '--older-than', '3m'], '12h, 30d'),
    (['-i', 'app:*', '--older-than', '-3d'], ''),
    (['-i', 'app:*', '--older-than', ''], '12h, 30d'),
    (['-i', 'app:*', '--by', 'created'], '--by'),
    (['-i', 'app:*', '--keep-last', '1', '--by', 'size'], '--by'),
    (['-i', 'app:*', '--older-than', '1d', '--by', 'version'], '--by'),
    (['-u', '--older-than', '1d', '--by', 'created'], '--by'),
    (['-l', '--keep-last', '3'], 'tags'),
])
def test_a_rule_that_makes_no_sense_is_a_usage_error_that_says_why(tree, arguments, reason):
    before = snapshot(tree.root)
    result = call('-d', tree.root, *arguments)
    assert (result.status, result.out) == (2, ''), result.said
    assert reason in result.said.splitlines()[-1]
    assert snapshot(tree.root) == before


# --- by the date of the image ---------------------------------------------------------------------

@pytest.fixture
def copied(tmp_path):
    """A store whose push times a copy has set anew: six images, the newest is 1."""
    tree = Tree(tmp_path)
    for number in range(1, 7):
        image = with_config(tree, 'app', {'created': date(number * DAY + HOUR)}, b'%d' % number)
        tree.tag('app', str(number), image, age=60 * (6 - number))
    return tree


def test_by_the_date_of_the_image(copied):
    found = listed(copied, '-i', 'app:*', '--by', 'created', '--keep-last', '2')
    assert sorted(words(found)) == ['app:3', 'app:4', 'app:5', 'app:6']
    found = listed(copied, '-i', 'app:*', '--by', 'created', '--older-than', '5d')
    assert sorted(words(found)) == ['app:5', 'app:6']


@pytest.mark.parametrize('created', NO_DATES + [{'created': '2020-13-45T99:99:99Z'},
                                                {'created': '9' * 5000}])
def test_an_image_without_a_date_stays_and_takes_no_place(copied, created):
    copied.tag('app', 'undated', with_config(copied, 'app', created, b'undated'))
    found = listed(copied, '-i', 'app:*', '--by', 'created', '--keep-last', '5')
    assert words(found) == ['app:6']


@pytest.mark.parametrize('config', [b'', b'[]', b'{', b'\xff', b'[' * 100000, b'null'])
def test_a_config_that_is_no_document(copied, config):
    copied.tag('app', 'odd', copied.image('app', [b'odd'], config=config))
    found = listed(copied, '-i', 'app:*', '--by', 'created', '--keep-last', '5')
    assert words(found) == ['app:6']


def test_the_newest_child_of_an_index(copied):
    """An index over 5 and 6 is as old as 5; over what is not stored, it has no date."""
    children = [current(copied, 'app', tag) for tag in '56']
    copied.tag('app', 'multi', copied.index('app', children + [MISSING]))
    copied.tag('app', 'sparse', copied.index('app', [MISSING]))
    found = listed(copied, '-i', 'app:*', '--by', 'created', '--keep-last', '5')
    assert words(found) == ['app:6']        # 5 and the index are a tie
    found = listed(copied, '-i', 'app:*', '--by', 'created', '--older-than', '5d')
    assert sorted(words(found)) == ['app:5', 'app:6', 'app:multi']


def test_an_index_that_contains_itself_by_way_of_many(copied):
    """A chain of indexes costs its length."""
    below = current(copied, 'app', '6')
    for number in range(300):
        below = copied.index('app', [below] * 2, annotations={'number': str(number)})
    copied.tag('app', 'chain', below)
    found = listed(copied, '-i', 'app:*', '--by', 'created', '--keep-last', '6')
    assert words(found) == []               # the chain is as old as 6: a tie
    found = listed(copied, '-i', 'app:*', '--by', 'created', '--older-than', '6d')
    assert sorted(words(found)) == ['app:6', 'app:chain']


def test_the_history_of_schema_1(tmp_path):
    tree = Tree(tmp_path)
    for number in range(1, 4):
        history = [{'v1Compatibility': json.dumps({'created': date(days * DAY + HOUR)})}
                   for days in (number, 30)]
        layers = [{'blobSum': tree.layer('app', b'%d' % number)}] * 2
        tree.tag('app', str(number), tree.manifest('app', {
            'schemaVersion': 1, 'name': 'app', 'fsLayers': layers, 'history': history}))
    found = listed(tree, '-i', 'app:*', '--by', 'created', '--keep-last', '1')
    assert sorted(words(found)) == ['app:2', 'app:3']
    assert words(listed(tree, '-i', 'app:*', '--by', 'created', '--older-than', '3d')) == ['app:3']


# --- what is said ---------------------------------------------------------------------------------

WARNING = r'WARNING.*--by created'


@pytest.mark.parametrize('tags_of, spread, warned', [
    (5, 9 * 60, True), (30, 500, True), (4, 60, False), (6, 15 * 60, False), (6, 5 * DAY, False)])
@pytest.mark.parametrize('rule', [['--keep-last', '2'], ['--older-than', '1d']])
def test_push_times_that_all_lie_within_ten_minutes(tmp_path, tags_of, spread, warned, rule):
    """The store may have been copied."""
    tree = Tree(tmp_path)
    for number in range(tags_of):
        tree.tag('app', 'b%d' % number, tree.image('app', [b'%d' % number]),
                 age=DAY * 9 + spread * number / (tags_of - 1))
    for request_of in ['-n', '--allow-remove-all'], ['-l']:
        said = call('-d', tree.root, '-i', 'app:*', *rule + request_of).said
        assert bool(re.search(WARNING, said)) == warned, said
    said = call('-d', tree.root, '-n', '-i', 'app:b1').said
    assert not re.search(WARNING, said), 'no rule'
    said = call('-d', tree.root, '-n', '-i', 'app:*', *rule + ['--by', 'created']).said
    assert not re.search(WARNING, said)


@pytest.mark.parametrize('rules, kept', [
    (['--keep-last', '2'], {'pr-5': 'one of the last 2', 'pr-4': 'one of the last 2',
                            'pr-3': 'one of the last 2'}),
    (['--older-than', '4d'], {'pr-3': 'days ago', 'pr-4': '3 days ago', 'pr-5': 'day'}),
    (['--keep-last', '1', '--older-than', '5d'], {
        'pr-5': 'one of the last 1', 'pr-4': 'days', 'pr-3': 'days', 'pr-2': '4 days ago'}),
    (['--keep-last', '3', '--by', 'version'], dict.fromkeys(
        ['pr-1', 'pr-2', 'pr-3', 'pr-4', 'pr-5'], 'version')),
    (['--keep-last', '3', '--by', 'created'], dict.fromkeys(
        ['pr-1', 'pr-2', 'pr-3', 'pr-4', 'pr-5'], 'date'))])
def test_a_dry_run_says_what_the_rules_keep_and_why(builds, rules, kept):
    said = call('-d', builds.root, '-n', '-i', 'app:*', *rules).said
    found = dict(re.findall(r'Keeps? app:(pr-\d)(.*)', said))
    assert set(found) == set(kept), said
    for tag, reason in kept.items():
        assert reason in found[tag], found
    quiet = call('-d', builds.root, '-n', '-q', '-i', 'app:*', *rules).said
    assert quiet == ''


def test_nothing_is_kept_by_no_rule(builds):
    assert 'Keep' not in call('-d', builds.root, '-n', '-i', 'app:pr-1').said


# --- untagged manifests and garbage of an age -----------------------------------------------------

def test_a_young_untagged_manifest_stays_with_its_layers(tree):
    old, young = tree.image('app', [b'old', b'both']), tree.image('app', [b'young', b'both'])
    set_age(tree.revision_link('app', old), 2 * DAY)
    assert words(listed(tree, '-u', '--older-than', '1d')) == ['app@' + old]
    found = the_json('-d', tree.v2, '-u', '--older-than', '1d')
    assert found['manifests'] == ['app@' + old]
    assert model.pull(tree.v2, 'app', young)[1]
    assert not os.path.exists(tree.blob_path(digest_of(b'old')))


def test_a_push_that_was_cut_short_goes_on_where_it_was(tree):
    """Its layers are linked, its manifest never came."""
    for data, age in [(b'old', 2 * DAY), (b'young', HOUR)]:
        layer = tree.layer('app', data)
        set_age(tree.layer_link('app', layer), age)
        set_age(tree.blob_path(layer), age)
        set_age(tree.blob_path(tree.blob(b'orphan, ' + data)), age)
    assert call('-d', tree.root, '-g', '--older-than', '1d').status == 0
    for data, age in [(b'old', 2 * DAY), (b'young', HOUR)]:
        for blob in data, b'orphan, ' + data:
            assert os.path.exists(tree.blob_path(digest_of(blob))) == (age < DAY)
    assert os.path.exists(tree.layer_link('app', digest_of(b'young')))


# --- expressions ----------------------------------------------------------------------------------

@pytest.fixture
def releases(tmp_path):
    tree = Tree(tmp_path)
    for tag in ['v1.2.3', 'v1.2.3-rc1', 'v1.10.0', '1.0', 'xv1.2.3', 'latest']:
        tree.tag('app', tag, tree.image('app', [tag.encode()]))
    tree.tag('team/app', 'v1.2.3', tree.image('team/app', [b'team']))
    tree.tag('app', current(tree, 'app', '1.0').replace(':', '-') + '.sig',
             tree.image('app', [b'signature']))
    return tree


@pytest.mark.parametrize('arguments, selected', [
    ([r'app:/v[0-9]+\.[0-9]+\.[0-9]+/'], ['v1.2.3', 'v1.10.0']),
    ([r'app:/v\d+\.\d+\.\d+/'], ['v1.2.3', 'v1.10.0']),
    ([r'app:/.*-rc\d+/'], ['v1.2.3-rc1']),
    ([r'app:/v1|1/'], []),                      # matched whole, each of them
    ([r'app:/1\.0|latest/'], ['1.0', 'latest']),
    ([r'app:/(?i)LATEST/'], ['latest']),
    ([r'app:/[^:@/]*3/'], ['v1.2.3', 'xv1.2.3']),
    ([r'app:/.*/'], ['v1.2.3', 'v1.2.3-rc1', 'v1.10.0', '1.0', 'xv1.2.3', 'latest']),
    ([r'app:/nothing.*/'], []),
    ([r'ap?:/v1.*/', '-x', r'*:/v[0-9]+\.[0-9]+\.[0-9]+/'], ['v1.2.3-rc1']),
    (['app:*', '-x', r'*:/v[0-9]+\.[0-9]+\.[0-9]+/'], ['v1.2.3-rc1', '1.0', 'xv1.2.3', 'latest']),
    (['app:*', '-x', 'app:/nothing.*/', '-x', 'app:/[^l].*/'], ['latest'])])
def test_expressions(releases, arguments, selected):
    expected = sorted('app:' + tag for tag in selected)
    assert sorted(words(listed(releases, '-i', *arguments))) == expected
    found = the_json('-d', releases.root, '-i', *arguments)
    assert sorted(tag for tag in found['tags'] if '.sig' not in tag) == expected
    assert len(tags(releases, 'app')) == 7 - len(found['tags'])
    assert tags(releases, 'team/app') == ['v1.2.3']


def test_an_expression_from_standard_input(releases):
    with standard_input('# releases\n' + r'app:/v\d+\.\d+\.\d+/'):
        found = the_json('-d', releases.root, '-i', '-')
    assert sorted(found['tags']) == ['app:v1.10.0', 'app:v1.2.3']


@pytest.mark.parametrize('expression', ['/v(/', '/[/', '/*/', '/a{2,1}/', '/(?P<x/', '/\\/', '//'])
@pytest.mark.parametrize('option', ['-i', '-x'])
def test_a_bad_expression_is_a_usage_error_that_shows_where(releases, expression, option):
    before = snapshot(releases.root)
    result = call('-d', releases.root, '-i', 'app:1.0', option, 'app:' + expression)
    if expression == '//':      # matches no tag, and is none
        assert result.status in (0, 2)
        return
    assert result.status == 2, result.said
    assert expression in result.said
    assert re.search(r'position \d+|\^', result.said), result.said
    assert snapshot(releases.root) == before


@pytest.mark.parametrize('image', ['app:/v1', 'app:v1/', 'app:/', '/app/:v1', 'app@/x/'])
def test_what_is_no_expression(releases, image):
    before = snapshot(releases.root)
    assert call('-d', releases.root, '-i', image).status == 2
    assert snapshot(releases.root) == before


def test_an_expression_that_would_leave_no_tag(tree):
    before = snapshot(tree.root)
    result = call('-d', tree.root, '-i', '*:/.*/')
    assert result.status == 1 and '--allow-remove-all' in result.said
    assert snapshot(tree.root) == before
    write(tree.tag_link('app', 'one-more'), current(tree, 'app', '1.0').encode())
    assert call('-d', tree.root, '-i', r'*:/[0-9.]+/').status == 0
    assert tags(tree, 'app') == ['one-more']
