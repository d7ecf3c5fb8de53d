"""The simulator: its models are reversible, its bound is exact, its files are a function of the seed."""

import itertools
from io import StringIO

import numpy as np
import pytest
from Bio.Phylo import NewickIO

from protformer.data.simulate import Settings, draw_family, grammar, profiles, simulate
from protformer.data.simulate.bound import leaf_posteriors
from protformer.data.simulate.evolve import Group, draw_residues
from protformer.data.simulate.family import SPLITS
from protformer.data.simulate.profiles import Contact, Site
from protformer.data.simulate.substitution import gonnet, pair_model, rate_model, site_rates
from protformer.data.simulate.tree import build_tree, draw_clades, draw_tree, newick
from protformer.errors import ProtformerError

SMALL = Settings(families=3, members=10, unseen_families=2, unseen_members=4, median_length=80.0, max_length=120)


def transition(model, time):
    return model.forward(np.eye(len(model.stationary)), np.full(len(model.stationary), time))


def test_gonnet_gives_back_its_own_scores_and_age():
    exchangeability, background = gonnet()
    assert np.allclose(exchangeability, exchangeability.T)
    assert (exchangeability[~np.eye(20, dtype=bool)] > 0).all()
    model = rate_model(site_rates(background), background)
    odds = transition(model, 2.5) / background  # 250 PAM are 2.5 substitutions a site, if rates come out as they should
    leucine, tryptophan = 9, 18
    assert 10 * np.log10(odds[leucine, leucine]) == pytest.approx(4.0, abs=0.05)
    assert 10 * np.log10(odds[tryptophan, tryptophan]) == pytest.approx(14.2, abs=0.05)


@pytest.mark.parametrize("model", [profiles.site_models(0.4)[Site.HELIX_BURIED], profiles.contact_models()[0]])
def test_models_are_reversible_processes(model):
    at, half = transition(model, 0.6), transition(model, 0.3)
    assert np.allclose(at.sum(1), 1)
    assert np.allclose(half @ half, at, atol=1e-9)
    flow = model.stationary[:, None] * at
    assert np.allclose(flow, flow.T, atol=1e-9)
    assert np.allclose(transition(model, 0.0), np.eye(len(at)), atol=1e-9)
    assert np.allclose(transition(model, 500.0), model.stationary, atol=1e-6)
    assert np.allclose(model.backward(np.eye(len(at)), np.full(len(at), 0.6)), at.T, atol=1e-9)


def test_coupled_sites_without_coupling_evolve_alone():
    first, second = profiles.site_profiles()[[Site.LOOP, Site.HELIX_BURIED]]
    joint = transition(pair_model(first, second, np.zeros((20, 20))), 0.4)
    singles = [transition(rate_model(site_rates(pi), pi), 0.4) for pi in (first, second)]
    assert np.allclose(joint, np.kron(*singles), atol=1e-9)


def test_contacts_covary_as_they_are_named():
    models = profiles.contact_models()
    joint = models[Contact.HELIX_CHARGE].stationary.reshape(20, 20)
    covariance = profiles.CHARGE @ (joint - np.outer(joint.sum(1), joint.sum(0))) @ profiles.CHARGE
    assert covariance < -0.1
    assert np.allclose(joint, joint.T)
    cysteines = models[Contact.DISULFIDE].stationary.reshape(20, 20)
    assert cysteines[1, 1] > 20 * (cysteines[1].sum() - cysteines[1, 1])


def test_profiles_mix_to_the_composition_of_real_proteins():
    mixture = profiles.CLASS_SHARE @ profiles.site_profiles()
    assert np.allclose(mixture, profiles.BACKGROUND, atol=1e-4)
    assert profiles.CLASS_SHARE.sum() == pytest.approx(1)
    assert np.abs(grammar.class_share(draws=200) - profiles.CLASS_SHARE).max() < 0.035


def test_helices_have_a_period_of_3_6_and_strands_alternate():
    rng = np.random.default_rng(0)
    power = np.zeros(3)
    for _ in range(200):
        body = np.array(grammar.helix(rng)[2:-1]) == Site.HELIX_BURIED
        waves = np.exp(2j * np.pi * np.arange(len(body))[:, None] / np.array([2.5, 3.6, 5.5]))
        power += np.abs((body - body.mean()) @ waves) ** 2
    assert power[1] > 5 * power[[0, 2]].max()
    beta = np.array(grammar.strand(rng, 8, central=False, first_buried=True)) == Site.STRAND_BURIED
    assert beta.tolist() == [True, False] * 4


def test_contacts_join_like_sites_once():
    rng = np.random.default_rng(3)
    far = 0
    for _ in range(30):
        ancestor = grammar.draw_ancestor(rng, 150)
        first, second, kind = ancestor.contacts.T
        assert len(set(first) | set(second)) == 2 * len(first)
        assert (ancestor.sites[first] == ancestor.sites[second]).all()
        assert (ancestor.sites[first] == np.array(profiles.SITE_OF_CONTACT)[kind]).all()
        far += (second - first >= grammar.MIN_SEPARATION).sum()
    assert far > 100


def test_clades_are_whole_disjoint_and_leave_some():
    rng = np.random.default_rng(5)
    for leaves in (6, 7, 12, 40):
        tree = draw_tree(rng, leaves, 1.0)
        valid, test = draw_clades(rng, tree, 0.1, 2)
        assert valid.any()
        assert test.any()
        assert not (valid & test).any()
        assert (valid | test).sum() <= 2 * leaves / 3
        parsed = next(NewickIO.parse(StringIO(newick(tree, [str(i) for i in range(leaves)]))))
        assert [tip.name for tip in parsed.get_terminals()] == [str(i) for i in range(leaves)]
        for mask in (valid, test):
            assert parsed.is_monophyletic([tip for tip in parsed.get_terminals() if mask[int(tip.name)]])


def toy_tree(scale=1.0):
    """((0, 1), (2, 3)): nodes 0 root, 1 and 2 inner, 3 to 6 leaves."""
    return build_tree(np.array([-1, 0, 0, 1, 1, 2, 2]), scale * np.array([0.0, 0.3, 0.5, 0.2, 0.7, 0.4, 0.1]))


def toy_model():
    stationary = np.array([0.5, 0.3, 0.2])
    return rate_model(np.array([[0, 1, 2], [1, 0, 3], [2, 3, 0.0]]) * stationary, stationary)


def test_posterior_equals_enumeration():
    tree, model, rate = toy_tree(), toy_model(), 1.7
    steps = [transition(model, rate * t) for t in tree.lengths]
    states, evidence = np.array([[0], [2], [1], [1]]), np.array([[True], [False], [True], [True]])
    found = leaf_posteriors(model, np.array([rate]), tree, states, evidence)[:, 0]
    expected = np.zeros((4, 3))
    for nodes in itertools.product(range(3), repeat=7):
        probability = model.stationary[nodes[0]]
        for node in range(1, 7):
            probability *= steps[node][nodes[tree.parents[node]], nodes[node]]
        fits = [not evidence[leaf, 0] or nodes[3 + leaf] == states[leaf, 0] for leaf in range(4)]
        for leaf in range(4):
            if all(fits[:leaf] + fits[leaf + 1 :]):
                expected[leaf, nodes[3 + leaf]] += probability
    assert np.allclose(found, expected / expected.sum(1, keepdims=True))


def test_bound_is_one_without_time_and_the_equilibrium_without_evidence():
    model, states = toy_model(), np.array([[1], [1], [1], [1]])
    sure = leaf_posteriors(model, np.ones(1), toy_tree(0.0), states, np.full((4, 1), True))
    assert np.allclose(sure[:, 0], [0, 1, 0])
    unsure = leaf_posteriors(model, np.ones(1), toy_tree(), states, np.full((4, 1), False))
    assert np.allclose(unsure[:, 0], model.stationary)


def test_residues_follow_the_model_down_the_tree():
    model, units = profiles.site_models(0.0)[Site.LOOP], 40_000
    group = Group(model, np.arange(units)[:, None], np.ones(units))
    tree = toy_tree()
    residues = draw_residues(np.random.default_rng(1), tree, [group], units)[tree.leaves]
    share = np.array([np.bincount(row, minlength=20) for row in residues]) / units
    assert np.abs(share - model.stationary).max() < 5 * np.sqrt(0.25 / units)
    joint = model.stationary[:, None] * transition(model, tree.lengths[3] + tree.lengths[4])  # two leaves of one parent
    same = (residues[0] == residues[1]).mean()
    assert same == pytest.approx(np.trace(joint), abs=5 * np.sqrt(0.25 / units))


def test_expected_and_realised_bound_agree_and_a_partner_helps():
    gaps, residues, entropy, alone = [], 0, 0.0, 0.0
    for index in range(12):
        family = draw_family(Settings(families=12, members=10, median_length=80.0), index)
        mask = family.present & (np.array(family.split) != "train")[:, None]
        gaps.append((family.bound.loss - family.bound.entropy)[mask].sum())
        residues += mask.sum()
        paired = mask & family.bound.paired
        entropy, alone = entropy + family.bound.entropy[paired].sum(), alone + family.bound.alone[paired].sum()
    error = np.sqrt(np.square(gaps).sum())
    assert abs(sum(gaps)) < 4 * error
    assert error / residues < 0.05
    assert entropy < alone


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    return folder, simulate(SMALL, folder)


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(small, tmp_path):
    folder, report = small
    assert simulate(SMALL, tmp_path / "again") == report
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted([f"{s}.{e}" for s in SPLITS for e in ("fasta", "tsv")] + ["trees.nwk", "demo.json"])
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    other = draw_family(Settings(**{**SMALL.as_dict(), "depth": SMALL.depth, "seed": 2}), 0)
    assert other.sequence(0) != draw_family(SMALL, 0).sequence(0)


def test_a_larger_set_begins_with_the_smaller():
    larger = Settings(**{**SMALL.as_dict(), "depth": SMALL.depth, "families": 50})
    for index, same in ((2, 2), (3, 50)):  # a trained family, and the first unseen one
        assert draw_family(SMALL, index).sequence(1) == draw_family(larger, same).sequence(1)


def test_knowledge_lowers_perplexity_in_order():
    """Over enough families: everything < the site class < its H/E/C label < nothing."""
    from protformer.data.simulate.dataset import Tally, perplexities

    settings = Settings(families=25, members=8, unseen_families=8, unseen_members=3)
    tallies = {split: Tally() for split in SPLITS}
    for index in range(settings.families + settings.unseen_families):
        family = draw_family(settings, index)
        for leaf, split in enumerate(family.split):
            tallies[split].add(family, leaf)
    for split in SPLITS:
        found = perplexities(tallies[split], tallies["train"].counts)
        order = [found[key] for key in ("best_reachable", "state_oracle", "three_states", "unigram")]
        assert order == sorted(order)
        assert 16.5 < found["unigram"] < 19.5


def test_an_earlier_set_is_not_written_over(small, tmp_path):
    with pytest.raises(ProtformerError, match="--force"):
        simulate(SMALL, small[0])

    def interrupt(_line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(SMALL, tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [{"families": 0}, {"members": 5}, {"held_out": 0.0}, {"seed": -1}, {"min_length": 200}, {"depth": (2.0, 1.0)}],
)
def test_settings_that_describe_no_set_are_named(wrong, tmp_path):
    with pytest.raises(ProtformerError):
        simulate(Settings(**wrong), tmp_path)
